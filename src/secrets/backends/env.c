/*
 * env.c
 *		Secrets in the environment of the server, to be read only.
 *
 * What the environment is was settled when the server was started. By default
 * a name becomes a variable as people write them: "db/password" with the
 * prefix "APP_" is APP_DB_PASSWORD.
 */
#include "postgres.h"

#include "common/errors.h"
#include "secrets/kind.h"

extern char **environ;

typedef enum EnvNames
{
	NAMES_UPPER,
	NAMES_EXACT
} EnvNames;

typedef struct EnvOptions
{
	BackendOptions common;
	char	   *prefix;
	int			names;			/* EnvNames */
} EnvOptions;

static const char *const env_names[] = {"upper", "exact", NULL};

static const Option env_options[] = {
	{"prefix", OPTION_TEXT, offsetof(EnvOptions, prefix), "",
		0, 0, NULL, NULL, false,
	"what all variables of this backend begin with"},
	{"names", OPTION_ENUM, offsetof(EnvOptions, names), "upper",
		0, 0, env_names, NULL, false,
	"upper: in capitals, with _ for what is no letter or digit; exact: as it is"},
	{NULL}
};

static bool
env_check(const BackendOptions *options, const char *what)
{
	const EnvOptions *o = (const EnvOptions *) options;

	if (strchr(o->prefix, '=') != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("option \"prefix\" of %s must not contain \"=\"", what),
				 errdetail("No environment variable's name does.")));
	return true;
}

/* The variable that a secret is in. */
static char *
env_variable(const EnvOptions *o, const char *name)
{
	char	   *variable = psprintf("%s%s", o->prefix, name);

	if (o->names == NAMES_UPPER)
	{
		for (char *p = variable + strlen(o->prefix); *p; p++)
			*p = isalnum((unsigned char) *p) ? pg_ascii_toupper(*p) : '_';
	}
	return variable;
}

static BackendResult
env_get(Backend *b, const char *name, const char *version, SecretValue *value)
{
	const char *text = environment(env_variable((const EnvOptions *) b->options,
												name));

	if (text == NULL || (version && strcmp(version, VERSION_CURRENT) != 0))
		return BACKEND_ABSENT;
	value->data = pstrdup(text);
	value->len = strlen(text);
	value->version = pstrdup(VERSION_CURRENT);
	return BACKEND_OK;
}

static BackendResult
env_versions(Backend *b, const char *name, VersionVisitor visit, void *arg)
{
	if (environment(env_variable((const EnvOptions *) b->options, name)) == NULL)
		return BACKEND_ABSENT;
	visit(VERSION_CURRENT, true, 0, arg);
	return BACKEND_OK;
}

/* The names that lead to the variables there are. */
static BackendResult
env_list(Backend *b, const char *prefix, NameVisitor visit, void *arg)
{
	const EnvOptions *o = (const EnvOptions *) b->options;
	size_t		len = strlen(o->prefix);

	for (char **p = environ; *p != NULL; p++)
	{
		const char *equals = strchr(*p, '=');
		char	   *name;

		if (equals == NULL || equals - *p <= len || equals[1] == '\0' ||
			strncmp(*p, o->prefix, len) != 0)
			continue;
		name = pnstrdup(*p + len, equals - *p - len);
		if (o->names == NAMES_UPPER)
		{
			char	   *variable = pstrdup(name);

			for (char *c = name; *c; c++)
				*c = pg_ascii_tolower(*c);
			if (strcmp(env_variable(o, name) + len, variable) != 0)
				continue;
		}
		if (strncmp(name, prefix, strlen(prefix)) == 0)
			visit(name, arg);
	}
	return BACKEND_OK;
}

static void
count_name(const char *name, void *arg)
{
	(*(int *) arg)++;
}

static BackendResult
env_test(Backend *b, char **words)
{
	int			n = 0;

	(void) env_list(b, "", count_name, &n);
	*words = psprintf("%d variables of the server's environment", n);
	return BACKEND_OK;
}

const BackendKind env_kind = {
	.base.name = "env",
	.base.help = "the environment of the server, read only",
	.base.options = env_options,
	.base.options_size = sizeof(EnvOptions),
	.local = true,
	.check = env_check,
	.get = env_get,
	.versions = env_versions,
	.list = env_list,
	.test = env_test,
};
