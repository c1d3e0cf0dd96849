/*
 * mounts.c
 *		Which secrets go to which files, and when a file is written again.
 *
 * A mount is a row of mlint.secret_mount. A job, which runs once a minute and
 * whenever a secret has another version, compares each with what should be:
 * the current versions of its secrets, and the file as it was left. A file is
 * known again by what the file system says of it (inode, size, times, mode),
 * so that nothing is decrypted to find that nothing has changed, and a digest
 * that would help guessing is nowhere. What was changed or removed by hand is
 * written again.
 *
 * A file goes with its mount, and when a secret that it names is gone.
 *
 * Each file is a transaction of its own: one that cannot be written says so in
 * its row, and the others are. Before the first time, that it will be written is
 * a transaction too: whatever happens then, the file is known, and goes with its
 * mount.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "common/argument.h"
#include "common/trial.h"
#include "common/audit.h"
#include "common/compat.h"
#include "common/crypto.h"
#include "common/errors.h"
#include "common/glob.h"
#include "common/injection.h"
#include "common/owner.h"
#include "common/plaintext.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "mounts/mounts.h"
#include "secrets/store.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(mlint_secret_mount_create);
PG_FUNCTION_INFO_V1(mlint_secret_mount_drop);
PG_FUNCTION_INFO_V1(mlint_secret_mount_run);
PG_FUNCTION_INFO_V1(mlint_secret_mount_changed);
PG_FUNCTION_INFO_V1(mlint_secret_env);

#define JOB		"secret_mounts"
/* Secrets in one file. */
#define NAMES_MAX	1000

typedef struct Mount
{
	int			id;
	char	   *path;
	ArrayType  *names;
	char	   *format;
	int			mode;
	bool		dropped;
	char	   *versions;		/* that the file has, JSON; NULL: none */
	char	   *file;			/* as mount_file_state() says; "": there may
								 * be one; NULL: none */
} Mount;

/* The secrets of a text, with their values while it is made. */
typedef struct Member
{
	char	   *name;
	char	   *version;		/* as in a JSON document; NULL: not known */
	SecretValue value;			/* data NULL: not read */
} Member;

typedef struct Members
{
	int			n;
	int			room;
	Member	   *items;
} Members;

void
mounts_init(void)
{
	mount_define_settings();
}

static bool
is_pattern(const char *name)
{
	return strpbrk(name, "*?") != NULL;
}

static char *
text_column(int row, int n)
{
	return SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, n);
}

/* ---- the text of several secrets ---- */

/* Add a secret, once. Strings are the caller's. */
static void
members_add(Members *members, char *name, char *version)
{
	for (int i = 0; i < members->n; i++)
	{
		if (strcmp(members->items[i].name, name) == 0)
			return;
	}
	if (members->n == NAMES_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("these are more than %d secrets", NAMES_MAX)));
	if (members->n == members->room)
	{
		members->room = members->room ? 2 * members->room : 16;
		members->items = members->items ?
			repalloc(members->items, members->room * sizeof(Member)) :
			palloc(members->room * sizeof(Member));
	}
	memset(&members->items[members->n], 0, sizeof(Member));
	members->items[members->n].name = name;
	members->items[members->n].version = version;
	members->n++;
}

/* Read the values that have not been read. */
static void
members_read(Members *members)
{
	for (int i = 0; i < members->n; i++)
	{
		Member	   *m = &members->items[i];

		if (m->value.data == NULL && !secret_read(m->name, NULL, &m->value))
		{
			m->value.data = NULL;
			secret_unknown(m->name);
		}
	}
}

static void
members_wipe(Members *members)
{
	for (int i = 0; i < members->n; i++)
	{
		if (members->items[i].value.data)
			secret_wipe(&members->items[i].value);
	}
}

/* Two secrets must not become one variable. */
static void
require_distinct(const Members *members)
{
	for (int i = 1; i < members->n; i++)
	{
		char	   *variable = dotenv_variable(members->items[i].name);

		for (int j = 0; j < i; j++)
		{
			if (strcmp(variable, dotenv_variable(members->items[j].name)) == 0)
				ereport(ERROR,
						(errcode(ERRCODE_DUPLICATE_OBJECT),
						 errmsg("secrets \"%s\" and \"%s\" would both be the variable %s",
								members->items[j].name,
								members->items[i].name, variable)));
		}
		pfree(variable);
	}
}

/* What goes into dotenv and json is text. */
static void
require_text(const Member *m)
{
	if (!pg_verify_mbstr(PG_UTF8, m->value.data, (int) m->value.len, true))
		ereport(ERROR,
				(errcode(ERRCODE_CHARACTER_NOT_IN_REPERTOIRE),
				 errmsg("the value of secret \"%s\" is not text", m->name),
				 errhint("Only the format raw takes any bytes.")));
}

static void
append_json_string(StringInfo out, const char *data, size_t len)
{
	appendStringInfoChar(out, '"');
	for (size_t i = 0; i < len; i++)
	{
		unsigned char c = (unsigned char) data[i];

		if (c == '"' || c == '\\')
			appendStringInfo(out, "\\%c", c);
		else if (c < ' ' || c == 0x7f)
			appendStringInfo(out, "\\u%04x", c);
		else
			appendStringInfoChar(out, c);
	}
	appendStringInfoChar(out, '"');
}

/*
 * Put a text together, which the caller wipes. Room for all of it is made
 * first, so that it is not moved, with a part left behind.
 */
static void
compose(const char *format, const Members *members, StringInfo out)
{
	size_t		room = 16;

	for (int i = 0; i < members->n; i++)
		room += 6 * members->items[i].value.len +
			2 * strlen(members->items[i].name) + 16;
	initStringInfo(out);
	enlargeStringInfo(out, (int) Min(room, MaxAllocSize / 2));

	if (strcmp(format, "raw") == 0)
	{
		appendBinaryStringInfo(out, members->items[0].value.data,
							   members->items[0].value.len);
		return;
	}
	if (strcmp(format, "json") == 0)
		appendStringInfoChar(out, '{');
	for (int i = 0; i < members->n; i++)
	{
		const Member *m = &members->items[i];

		require_text(m);
		if (strcmp(format, "dotenv") == 0)
		{
			dotenv_append(out, m->name, m->value.data, m->value.len);
			continue;
		}
		appendStringInfoString(out, i ? ",\n " : "\n ");
		append_json_string(out, m->name, strlen(m->name));
		appendStringInfoString(out, ": ");
		append_json_string(out, m->value.data, m->value.len);
	}
	if (strcmp(format, "json") == 0)
		appendStringInfoString(out, "\n}\n");
}

/* mlint.secret_env(names) */
Datum
mlint_secret_env(PG_FUNCTION_ARGS)
{
	Datum	   *items;
	bool	   *nulls;
	int			n;
	Members    *members = palloc0(sizeof(Members));
	StringInfo	out = makeStringInfo();
	text	   *volatile result = NULL;

	deconstruct_array(PG_GETARG_ARRAYTYPE_P(0), TEXTOID, -1, false,
					  TYPALIGN_INT, &items, &nulls, &n);
	for (int i = 0; i < n; i++)
	{
		char	   *name;

		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("the name of a secret must not be null")));
		name = TextDatumGetCString(items[i]);
		secret_require(name, SECRET_READ, "secret.read");
		members_add(members, name, NULL);
		if (members->n != i + 1)
			ereport(ERROR,
					(errcode(ERRCODE_DUPLICATE_OBJECT),
					 errmsg("secret \"%s\" is named twice", name)));
	}
	require_distinct(members);
	PG_TRY();
	{
		members_read(members);
		compose("dotenv", members, out);
		result = plaintext_give(out->data, out->len);
	}
	PG_FINALLY();
	{
		members_wipe(members);
		crypto_wipe(out->data, out->len);
	}
	PG_END_TRY();
	PG_RETURN_TEXT_P(result);
}

/* ---- create and drop ---- */

/* An octal mode that lets nobody else write, nor anybody execute. */
static int
parse_mode(const char *text)
{
	size_t		len = strlen(text);
	long		mode = strtol(text, NULL, 8);

	if (len < 3 || len > 4 || strspn(text, "01234567") != len ||
		(mode & ~0644) != 0 || (mode & 0400) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid mode of a file: \"%s\"", text),
				 errdetail("It is octal, lets the owner read, and nobody else write, nor anybody execute."),
				 errhint("For example '0400', or '0440' when the group of the server's user is to read.")));
	return (int) mode;
}

/* The names of a mount, which must be the caller's to read. */
static ArrayType *
mount_names(FunctionCallInfo fcinfo, bool raw)
{
	Datum	   *more;
	bool	   *nulls;
	int			n;
	Datum	   *names;

	deconstruct_array(PG_GETARG_ARRAYTYPE_P(4), TEXTOID, -1, false,
					  TYPALIGN_INT, &more, &nulls, &n);
	names = palloc((n + 1) * sizeof(Datum));
	names[0] = PG_GETARG_DATUM(0);
	for (int i = 0; i < n; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("the name of a secret must not be null")));
		names[i + 1] = more[i];
	}
	for (int i = 0; i <= n; i++)
	{
		char	   *name = TextDatumGetCString(names[i]);

		if (raw && (n > 0 || is_pattern(name)))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("a file of format raw has one secret"),
					 errhint("The formats dotenv and json take several, and glob patterns.")));
		if (is_pattern(name))
			continue;
		secret_require(name, SECRET_READ, "mount.create");
		if (!secret_permitted_to_read(name, GetUserId()))
			secret_unknown(name);
	}
	return construct_array(names, n + 1, TEXTOID, -1, false, TYPALIGN_INT);
}

/* mlint.secret_mount_create(name, path, mode, format, more) */
Datum
mlint_secret_mount_create(PG_FUNCTION_ARGS)
{
	char	   *path = text_to_cstring(PG_GETARG_TEXT_PP(1));
	int			mode = parse_mode(text_to_cstring(PG_GETARG_TEXT_PP(2)));
	char	   *format = text_to_cstring(PG_GETARG_TEXT_PP(3));
	OwnerScope	scope;
	Oid			types[] = {TEXTOID, TEXTARRAYOID, TEXTOID, INT4OID, OIDOID};
	Datum		values[5];

	require_writable(fcinfo);
	mount_path_check(path);
	if (strcmp(format, "raw") != 0 && strcmp(format, "dotenv") != 0 &&
		strcmp(format, "json") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("there is no format \"%s\"", format),
				 errhint("Formats are raw, dotenv and json.")));
	values[0] = CStringGetTextDatum(path);
	values[1] = PointerGetDatum(mount_names(fcinfo,
											strcmp(format, "raw") == 0));
	values[2] = CStringGetTextDatum(format);
	if (mount_directory() == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("mlint.secret_mount_directory is not set"),
				 errhint("Set it in postgresql.conf to a directory of the server's operating-system user, and reload.")));
	values[3] = Int32GetDatum(mode);
	values[4] = ObjectIdGetDatum(GetUserId());

	owner_begin(&scope);
	owner_run(NULL,
			  "INSERT INTO mlint.secret_mount (path, names, format, mode, created_by)"
			  " VALUES ($1, $2, $3, $4, $5)"
			  " ON CONFLICT (path) WHERE dropped_at IS NULL DO NOTHING",
			  SPI_OK_INSERT, 5, types, values, NULL);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("there is a mount at \"%s\" already", path),
				 errhint("Drop it with mlint.secret_mount_drop first.")));
	owner_end(&scope);
	audit(AUDIT_CHANGED, "mount.create", "mount", path, NULL);
	(void) job_request(JOB);
	PG_RETURN_VOID();
}

/* mlint.secret_mount_drop(path) */
Datum
mlint_secret_mount_drop(PG_FUNCTION_ARGS)
{
	char	   *path = text_to_cstring(PG_GETARG_TEXT_PP(0));
	OwnerScope	scope;
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(path)};

	require_writable(fcinfo);
	owner_begin(&scope);
	owner_run(NULL,
			  "UPDATE mlint.secret_mount SET dropped_at = pg_catalog.clock_timestamp()"
			  " WHERE path = $1 AND dropped_at IS NULL",
			  SPI_OK_UPDATE, 1, types, values, NULL);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("there is no mount at \"%s\"", path),
				 errhint("The view mlint.secret_mounts lists them.")));
	owner_end(&scope);
	audit(AUDIT_CHANGED, "mount.drop", "mount", path, NULL);
	(void) job_request(JOB);
	PG_RETURN_VOID();
}

/* Trigger: a secret has another version, or is gone. */
Datum
mlint_secret_mount_changed(PG_FUNCTION_ARGS)
{
	bool		some;

	if (!CALLED_AS_TRIGGER(fcinfo))
		elog(ERROR, "mlint.secret_mount_changed() is a trigger function");
	some = owner_do(NULL,
					"SELECT FROM mlint.secret_mount LIMIT 1", SPI_OK_SELECT, 0, NULL,
					NULL, NULL);
	if (some)
		(void) job_request(JOB);
	PG_RETURN_POINTER(NULL);
}

/* ---- the job ---- */

/* Add the secrets of the local store that match. */
static void
add_matching(Members *members, const char *pattern)
{
	OwnerScope	scope;
	MemoryContext context = CurrentMemoryContext;

	owner_begin(&scope);
	owner_run(NULL,
			  "SELECT name, version FROM mlint.secret WHERE version > 0"
			  " ORDER BY name", SPI_OK_SELECT, 0, NULL, NULL, NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		char	   *name = text_column(i, 1);

		if (!glob_match(pattern, name))
			continue;
		MemoryContextSwitchTo(context);
		members_add(members, pstrdup(name), pstrdup(text_column(i, 2)));
	}
	owner_end(&scope);
}

/*
 * The secrets of a mount, with their current versions; what another system
 * keeps is read for that. False when one is missing, whose name is then *gone.
 */
static bool
find_members(const Mount *mount, Members *members, char **gone)
{
	Datum	   *names;
	int			n;

	deconstruct_array(mount->names, TEXTOID, -1, false, TYPALIGN_INT, &names,
					  NULL, &n);
	for (int i = 0; i < n; i++)
	{
		char	   *name = TextDatumGetCString(names[i]);
		StoredSecret secret;

		if (is_pattern(name))
			add_matching(members, name);
		else if (strchr(name, ':') != NULL)
		{
			SecretValue value;
			StringInfoData version;

			*gone = name;
			if (!secret_read(name, NULL, &value))
				return false;
			initStringInfo(&version);
			escape_json(&version, value.version ? value.version : "");
			members_add(members, name, version.data);
			members->items[members->n - 1].value = value;
		}
		else
		{
			*gone = name;
			if (!store_find(name, &secret) || secret.version == 0)
				return false;
			members_add(members, name, psprintf("%d", secret.version));
		}
	}
	*gone = "any";
	return members->n > 0;
}

/* {"name": version, ...} */
static char *
versions_text(const Members *members)
{
	StringInfoData out;

	initStringInfo(&out);
	for (int i = 0; i < members->n; i++)
		appendStringInfo(&out, "%s\"%s\": %s", i ? ", " : "{",
						 members->items[i].name, members->items[i].version);
	appendStringInfoChar(&out, '}');
	return out.data;
}

/* What the row says of the file. NULL: there is none. */
static void
record(const Mount *mount, const char *versions, const char *file)
{
	Oid			types[] = {INT4OID, TEXTOID, TEXTOID};
	Datum		values[] = {Int32GetDatum(mount->id),
		CStringGetTextDatum(versions ? versions : ""),
	CStringGetTextDatum(file ? file : "")};

	owner_do(NULL,
			 "UPDATE mlint.secret_mount SET versions = nullif($2, ''),"
			 " file = nullif($3, ''), error = NULL, written_at ="
			 " CASE WHEN $3 <> '' THEN pg_catalog.clock_timestamp() END"
			 " WHERE id = $1", SPI_OK_UPDATE, 3, types, values, NULL);
}

static void
record_error(const Mount *mount, const char *error)
{
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[] = {Int32GetDatum(mount->id),
	CStringGetTextDatum(error ? error : "")};

	owner_do(NULL,
			 "UPDATE mlint.secret_mount SET error = nullif($2, '')"
			 " WHERE id = $1 AND error IS DISTINCT FROM nullif($2, '')",
			 SPI_OK_UPDATE, 2, types, values, NULL);
}

/* A mount that was dropped: its file goes, unless it is another's now. */
static void
remove_mount(const Mount *mount)
{
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[] = {Int32GetDatum(mount->id),
	CStringGetTextDatum(mount->path)};
	bool		taken;

	taken = owner_do(NULL,
					 "SELECT FROM mlint.secret_mount WHERE path = $2"
					 " AND dropped_at IS NULL", SPI_OK_SELECT, 2, types, values,
					 NULL);
	if (mount->file && !taken)
		mount_file_remove(mount->path);
	owner_do(NULL,
			 "DELETE FROM mlint.secret_mount WHERE id = $1", SPI_OK_DELETE, 1,
			 types, values, NULL);
}

/* There may be a file from now on, whatever becomes of the attempt. */
static void
announce(const Mount *mount)
{
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(mount->id)};

	owner_do(NULL,
			 "UPDATE mlint.secret_mount SET file = '' WHERE id = $1",
			 SPI_OK_UPDATE, 1, types, values, NULL);
	/* On disk before the file is: workers do not wait for that otherwise. */
	job_commit_durably();
}

/*
 * Write the file, if it is not as it should be. False: it was announced, and is
 * to be written by another transaction.
 */
static bool
write_mount(const Mount *mount, Members *members)
{
	char	   *versions = versions_text(members);
	StringInfo	out = makeStringInfo();
	char	   *file;

	if (mount->versions && mount->file &&
		strcmp(versions, mount->versions) == 0 &&
		strcmp(mount_file_state(mount->path), mount->file) == 0)
	{
		record_error(mount, NULL);
		return true;
	}
	if (strcmp(mount->format, "dotenv") == 0)
		require_distinct(members);
	if (mount->file == NULL)
	{
		/* Where nothing can be written nothing has to be removed. */
		(void) mount_file_state(mount->path);
		announce(mount);
		return false;
	}
	members_read(members);
	PG_TRY();
	{
		compose(mount->format, members, out);
		file = mount_file_write(mount->path, mount->mode, out->data,
								out->len);
		INJECTION("mount-written");
		record(mount, versions, file);
	}
	PG_FINALLY();
	{
		crypto_wipe(out->data, out->len);
	}
	PG_END_TRY();
	audit(AUDIT_CHANGED, "mount.write", "mount", mount->path, versions);
	return true;
}

/*
 * Bring one mount's file to what it should be, or raise. False: there is more
 * to do, in another transaction.
 */
static bool
keep_mount(const Mount *mount, Members *members)
{
	char	   *gone;

	if (mount->dropped)
		remove_mount(mount);
	else if (find_members(mount, members, &gone))
		return write_mount(mount, members);
	else
	{
		if (mount->file)
		{
			mount_file_remove(mount->path);
			record(mount, NULL, NULL);
		}
		record_error(mount, strcmp(gone, "any") == 0 ?
					 "there is no secret that matches" :
					 psprintf("secret \"%s\" does not exist", gone));
	}
	return true;
}

/* Lock a mount's row; NULL when it is gone. */
static Mount *
load_mount(int id)
{
	OwnerScope	scope;
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(id)};
	MemoryContext context = CurrentMemoryContext;
	MemoryContext old;
	Mount	   *mount = NULL;
	bool		isnull;

	owner_begin(&scope);
	owner_run(NULL,
			  "SELECT path, names, format, mode, dropped_at IS NOT NULL, versions,"
			  " file FROM mlint.secret_mount WHERE id = $1 FOR UPDATE",
			  SPI_OK_SELECT, 1, types, values, NULL);
	if (SPI_processed > 0)
	{
		HeapTuple	row = SPI_tuptable->vals[0];
		TupleDesc	desc = SPI_tuptable->tupdesc;

		old = MemoryContextSwitchTo(context);
		mount = palloc0(sizeof(Mount));
		mount->id = id;
		mount->path = text_column(0, 1);
		mount->names = DatumGetArrayTypePCopy(SPI_getbinval(row, desc, 2,
															&isnull));
		mount->format = text_column(0, 3);
		mount->mode = DatumGetInt32(SPI_getbinval(row, desc, 4, &isnull));
		mount->dropped = DatumGetBool(SPI_getbinval(row, desc, 5, &isnull));
		mount->versions = text_column(0, 6);
		mount->file = text_column(0, 7);
		MemoryContextSwitchTo(old);
	}
	owner_end(&scope);
	return mount;
}

/*
 * One mount; what goes wrong is in its row. False: there is more to do, in
 * another transaction.
 */
static bool
run_mount(int id)
{
	Trial		trial;
	Mount	   *mount = load_mount(id);
	Members    *members = palloc0(sizeof(Members));
	char	   *volatile error = NULL;
	volatile bool done = true;

	if (mount == NULL)
		return true;
	trial_begin(&trial);
	PG_TRY();
	{
		PushActiveSnapshot(GetTransactionSnapshot());
		done = keep_mount(mount, members);
		PopActiveSnapshot();
		trial_end(&trial);
	}
	PG_CATCH();
	{
		error = trial_failed(&trial)->message;
	}
	PG_END_TRY();
	members_wipe(members);
	if (error)
		record_error(mount, error);
	return done;
}

/* CALL mlint.secret_mount_run() */
Datum
mlint_secret_mount_run(PG_FUNCTION_ARGS)
{
	MemoryContext own;
	OwnerScope	scope;
	int			n;
	int		   *ids;

	job_procedure_begin(fcinfo, "mlint.secret_mount_run()",
						JOB_RUN_HINT("secret_mounts"));
	own = CurrentMemoryContext;

	owner_begin(&scope);
	/* Those that are to go first: another may be to come at the same path. */
	owner_run(NULL,
			  "SELECT id FROM mlint.secret_mount ORDER BY dropped_at IS NULL, id",
			  SPI_OK_SELECT, 0, NULL, NULL, NULL);
	n = SPI_processed;
	ids = MemoryContextAlloc(own, sizeof(int) * (n + 1));
	for (int i = 0; i < n; i++)
		ids[i] = (int) strtol(text_column(i, 1), NULL, 10);
	owner_end(&scope);
	SPI_commit();

	for (int i = 0; i < n; i++)
	{
		bool		done;

		do
		{
			CHECK_FOR_INTERRUPTS();
			MemoryContextSwitchTo(TopTransactionContext);
			done = run_mount(ids[i]);
			MemoryContextSwitchTo(own);
			SPI_commit();
		} while (!done);
	}
	job_procedure_end();
	PG_RETURN_VOID();
}
