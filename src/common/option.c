/*
 * option.c
 *		The one option parser: a JSON object against a table, into a struct.
 *
 * Parsing has two halves. First every option of every table gets its preset,
 * so that the struct is whole whatever the caller leaves out. Then the keys
 * of the object are looked up one by one, and each value is checked for type
 * and bounds and put in its place; what is required and was not given is
 * found last. A null counts as not given. A required option of a group is
 * required only when the group is there.
 *
 * Whoever gets an option wrong reads the error in psql, without the manual at
 * hand. So an unknown key lists the known ones and names the likeliest (also
 * when that one lives in a group, where people do not look for it), a wrong
 * type says what was expected and what came, and bounds are told. The value
 * itself is shown only when it is a number: a text may well be a credential
 * that was put under the wrong key.
 */
#include "postgres.h"

#include <float.h>
#include <math.h>

#include "common/errors.h"
#include "common/http.h"
#include "common/option.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/tuplestore.h"
#include "utils/varlena.h"

/* Longer names are cut in messages, and nothing resembles them. */
#define KEY_SHOWN_BYTES		64

#define SLOT(type, out, option)	((type *) (void *) ((char *) (out) + (option)->offset))

/* Where in the options we are, for messages. */
typedef struct OptionPath
{
	const char *what;			/* the object, in the caller's words */
	const char *group;			/* NULL at the top */
} OptionPath;

static void parse_object(const Option *const *tables, int ntables,
						 JsonbContainer * object, const OptionPath *path,
						 void *out);

/* What the caller should have written, as "must be ..." goes on. */
static const char *
type_phrase(OptionType type)
{
	switch (type)
	{
		case OPTION_TEXT:
			return "a string";
		case OPTION_URL:
			return "a string with a URL";
		case OPTION_INT:
			return "an integer";
		case OPTION_REAL:
			return "a number";
		case OPTION_BOOL:
			return "true or false";
		case OPTION_ENUM:
			return "one of the known strings";
		case OPTION_CREDENTIAL:
			return "a reference to a credential";
		case OPTION_CREDENTIALS:
			return "a reference to a credential, or an array of them";
		case OPTION_LIST:
			return "an array of strings, or a string with commas";
		case OPTION_FUNCTION:
			return "a string with the name of a function";
		case OPTION_JSON:
		case OPTION_GROUP:
			return "an object";
	}
	return "something else";
}

/* What the caller wrote instead. */
static const char *
value_phrase(const JsonbValue *value)
{
	switch (value->type)
	{
		case jbvNull:
			return "null";
		case jbvString:
			return "a string";
		case jbvNumeric:
			return "a number";
		case jbvBool:
			return "a boolean";
		case jbvBinary:
			return JsonContainerIsObject(value->val.binary.data) ?
				"an object" : "an array";
		default:
			return "something else";
	}
}

/* "option", or "group.option". */
static char *
full_name(const char *group, const char *name)
{
	return group ? psprintf("%s.%s", group, name) : pstrdup(name);
}

/* A name as it goes into a message: not longer than a name should be. */
static char *
shown_key(const char *key)
{
	int			len = strlen(key);

	if (len <= KEY_SHOWN_BYTES)
		return pstrdup(key);
	return psprintf("%.*s...", pg_mbcliplen(key, len, KEY_SHOWN_BYTES), key);
}

/* How the error messages call an option. */
static char *
option_label(const OptionPath *path, const Option *option)
{
	return psprintf("option \"%s\" of %s",
					full_name(path->group, option->name), path->what);
}

/* The bounds or choices for a person; NULL when there are none. */
static char *
bounds_text(const Option *option)
{
	StringInfoData choices;

	if ((option->type == OPTION_INT || option->type == OPTION_REAL) &&
		option->min < option->max)
		return psprintf("%.15g .. %.15g", option->min, option->max);
	if (option->type != OPTION_ENUM)
		return NULL;

	initStringInfo(&choices);
	for (int i = 0; option->choices[i]; i++)
		appendStringInfo(&choices, "%s%s", i ? " | " : "",
						 option->choices[i]);
	return choices.data;
}

static void
wrong_type(const Option *option, const char *label, const JsonbValue *value)
{
	char	   *bounds = bounds_text(option);

	ereport(ERROR,
			(errcode(ERRCODE_MLINT_CONFIGURATION),
			 errmsg("%s must be %s", label, type_phrase(option->type)),
			 errdetail("It was given as %s.", value_phrase(value)),
			 bounds ? errhint("It takes: %s.", bounds) : 0));
}

/*
 * Looking for the known option that is most like an unknown key.
 */
typedef struct Likeness
{
	const char *key;
	int			distance;		/* of the best so far */
	const char *group;			/* of the table being looked at */
	bool		nested;			/* it lies below the level of the key */
	const char *best_group;
	const char *best;
} Likeness;

/*
 * Edits from one name to another; INT_MAX when they are too many. A name that
 * is part of the other ("timeout", "secret") is near, however short it is.
 */
static int
name_distance(const char *a, const char *b)
{
	int			la = strlen(a);
	int			lb = strlen(b);
	int			most = Min(4, Max(la, lb) / 2);
	int			d;

	if (la > KEY_SHOWN_BYTES || lb > KEY_SHOWN_BYTES)
		return INT_MAX;
	if (Min(la, lb) > 3 && la != lb && (strstr(a, b) || strstr(b, a)))
		return 1;
	d = varstr_levenshtein_less_equal(a, la, b, lb, 1, 1, 1, most, true);
	return d <= most ? d : INT_MAX;
}

static void
likeness_look(Likeness *l, const Option *table)
{
	for (const Option *o = table; o->name; o++)
	{
		int			d = name_distance(l->key, o->name);

		/* At equal distance, what stands at the caller's own level wins. */
		if (l->nested && strcmp(l->key, full_name(l->group, o->name)) == 0)
			d = 0;
		else if (l->nested && d < INT_MAX)
			d++;
		if (d < l->distance)
		{
			l->distance = d;
			l->best = o->name;
			l->best_group = l->group;
		}
		if (o->type == OPTION_GROUP && l->group == NULL)
		{
			l->group = o->name;
			l->nested = true;
			likeness_look(l, o->group);
			l->group = NULL;
			l->nested = false;
		}
	}
}

/* What to do about an unknown key; NULL when nothing resembles it. */
static char *
suggestion(const Option *const *tables, int ntables, const char *key,
		   const OptionPath *path)
{
	Likeness	l = {.key = key,.distance = INT_MAX,.group = path->group};

	for (int i = 0; i < ntables; i++)
		likeness_look(&l, tables[i]);

	if (l.best == NULL)
		return NULL;
	if (l.best_group && path->group == NULL)
		return psprintf("Perhaps you meant {\"%s\": {\"%s\": ...}}.",
						l.best_group, l.best);
	return psprintf("Perhaps you meant \"%s\".", l.best);
}

static void
unknown_key(const Option *const *tables, int ntables, const char *key,
			const OptionPath *path)
{
	StringInfoData known;
	char	   *hint = suggestion(tables, ntables, key, path);

	initStringInfo(&known);
	for (int i = 0; i < ntables; i++)
		for (const Option *o = tables[i]; o->name; o++)
			appendStringInfo(&known, "%s%s", known.len ? ", " : "", o->name);

	ereport(ERROR,
			(errcode(ERRCODE_MLINT_CONFIGURATION),
			 errmsg("unknown option \"%s\" of %s",
					full_name(path->group, shown_key(key)), path->what),
			 errdetail("Known options%s%s are: %s.",
					   path->group ? " of " : "",
					   path->group ? path->group : "", known.data),
			 hint ? errhint("%s", hint) : 0));
}

/*
 * The number that a JSON value holds, after the check of type and bounds. It
 * goes by way of text: a numeric beyond a double's range becomes infinite
 * here and fails the bounds, where a cast would raise an error of its own.
 */
static double
parse_number(const Option *option, const char *label, const JsonbValue *value)
{
	bool		bounded = option->min < option->max;
	double		min = option->min;
	double		max = option->max;
	char	   *text;
	double		number;

	if (value->type != jbvNumeric)
		wrong_type(option, label, value);

	text = DatumGetCString(DirectFunctionCall1(numeric_out,
											   NumericGetDatum(value->val.numeric)));

	number = strtod(text, NULL);

	if (!bounded)
	{
		min = option->type == OPTION_INT ? PG_INT32_MIN : -DBL_MAX;
		max = option->type == OPTION_INT ? PG_INT32_MAX : DBL_MAX;
	}
	if (!(number >= min && number <= max))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("%s is out of bounds: %s", label, shown_key(text)),
				 errdetail("It must lie between %.15g and %.15g.", min, max),
				 option->help ? errhint("%s: %s.", option->name,
										option->help) : 0));
	if (option->type == OPTION_INT && number != floor(number))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("%s must be an integer", label),
				 errdetail("It was given as %s.", shown_key(text))));
	return number;
}

/* The index of a choice; -1: it is none of them. */
static int
choice_index(const Option *option, const char *text)
{
	for (int i = 0; option->choices[i]; i++)
		if (strcmp(option->choices[i], text) == 0)
			return i;
	return -1;
}

/* The index of the choice that a JSON value names. */
static int
parse_choice(const Option *option, const char *label, const JsonbValue *value)
{
	const char *best = NULL;
	int			least = INT_MAX;
	char	   *text;
	int			choice;

	if (value->type != jbvString)
		wrong_type(option, label, value);

	text = pnstrdup(value->val.string.val, value->val.string.len);

	choice = choice_index(option, text);
	if (choice >= 0)
		return choice;

	for (int i = 0; option->choices[i]; i++)
	{
		int			d = name_distance(text, option->choices[i]);

		if (d < least)
		{
			least = d;
			best = option->choices[i];
		}
	}
	ereport(ERROR,
			(errcode(ERRCODE_MLINT_CONFIGURATION),
			 errmsg("%s has an unknown value", label),
			 errdetail("It must be one of: %s.", bounds_text(option)),
			 best ? errhint("Perhaps you meant \"%s\".", best) : 0));
}

/* A string that is not empty: a URL, a function's name. */
static char *
parse_string(const Option *option, const char *label, const JsonbValue *value)
{
	if (value->type != jbvString)
		wrong_type(option, label, value);
	if (value->val.string.len == 0 && option->type != OPTION_TEXT)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("%s must not be empty", label),
				 option->help ? errhint("%s: %s.", option->name,
										option->help) : 0));
	return pnstrdup(value->val.string.val, value->val.string.len);
}

/* One reference, or an array of at least one. */
static CredentialList
parse_credentials(const char *label, JsonbValue *value)
{
	CredentialList list = {0};
	JsonbContainer *array;

	if (value->type != jbvBinary ||
		!JsonContainerIsArray(value->val.binary.data))
	{
		list.n = 1;
		list.items = palloc(sizeof(Credential));
		list.items[0] = credential_parse(value, label);
		return list;
	}

	array = value->val.binary.data;
	list.n = JsonContainerSize(array);
	if (list.n == 0)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("%s must not be an empty array", label),
				 errhint("Leave the option out, or name at least one credential: [{\"secret\": \"name\"}].")));

	list.items = palloc(mul_size(list.n, sizeof(Credential)));
	for (int i = 0; i < list.n; i++)
		list.items[i] = credential_parse(getIthJsonbValueFromContainer(array, i),
										 psprintf("%s, element %d,", label, i + 1));
	return list;
}

/* Strings, of an array or between commas: some, and none of them empty. */
static char **
parse_list(const Option *option, const char *label, const JsonbValue *value)
{
	List	   *items = NIL;
	ListCell   *lc;
	char	  **list;
	int			n = 0;

	if (value->type == jbvString)
	{
		char	   *rest = pnstrdup(value->val.string.val,
									value->val.string.len);
		char	   *item;

		while ((item = strsep(&rest, ",")) != NULL)
		{
			size_t		len;

			item += strspn(item, " ");
			len = strlen(item);
			while (len > 0 && item[len - 1] == ' ')
				item[--len] = '\0';
			items = lappend(items, item);
		}
	}
	else if (value->type == jbvBinary &&
			 JsonContainerIsArray(value->val.binary.data))
	{
		JsonbContainer *array = value->val.binary.data;

		for (int i = 0; i < JsonContainerSize(array); i++)
		{
			JsonbValue *v = getIthJsonbValueFromContainer(array, i);

			if (v->type != jbvString)
				wrong_type(option, label, value);
			items = lappend(items, pnstrdup(v->val.string.val,
											v->val.string.len));
		}
	}
	else
		wrong_type(option, label, value);

	list = palloc(mul_size(list_length(items) + 1, sizeof(char *)));
	foreach(lc, items)
	{
		list[n] = lfirst(lc);
		if (list[n][0] == '\0')
			ereport(ERROR,
					(errcode(ERRCODE_MLINT_CONFIGURATION),
					 errmsg("%s has an empty element", label)));
		for (int i = 0; i < n; i++)
		{
			if (strcmp(list[i], list[n]) == 0)
				ereport(ERROR,
						(errcode(ERRCODE_MLINT_CONFIGURATION),
						 errmsg("%s has an element twice", label)));
		}
		n++;
	}
	list[n] = NULL;
	if (n == 0)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("%s must not be empty", label)));
	return list;
}

/* Check one value and put it in its place. */
static void
parse_value(const Option *option, JsonbValue *value, const OptionPath *path,
			void *out)
{
	char	   *label = option_label(path, option);

	switch (option->type)
	{
		case OPTION_TEXT:
		case OPTION_FUNCTION:
			*SLOT(char *, out, option) = parse_string(option, label, value);
			break;
		case OPTION_LIST:
			*SLOT(char **, out, option) = parse_list(option, label, value);
			break;
		case OPTION_URL:
			{
				char	   *url = parse_string(option, label, value);

				http_url_check(url, label);
				*SLOT(char *, out, option) = url;
				break;
			}
		case OPTION_INT:
			*SLOT(int, out, option) = (int) parse_number(option, label, value);
			break;
		case OPTION_REAL:
			*SLOT(double, out, option) = parse_number(option, label, value);
			break;
		case OPTION_BOOL:
			if (value->type != jbvBool)
				wrong_type(option, label, value);
			*SLOT(bool, out, option) = value->val.boolean;
			break;
		case OPTION_ENUM:
			*SLOT(int, out, option) = parse_choice(option, label, value);
			break;
		case OPTION_CREDENTIAL:
			*SLOT(Credential, out, option) = credential_parse(value, label);
			break;
		case OPTION_CREDENTIALS:
			*SLOT(CredentialList, out, option) = parse_credentials(label,
																   value);
			break;
		case OPTION_JSON:
		case OPTION_GROUP:
			if (value->type != jbvBinary ||
				!JsonContainerIsObject(value->val.binary.data))
				wrong_type(option, label, value);
			if (option->type == OPTION_JSON)
				*SLOT(Jsonb *, out, option) = JsonbValueToJsonb(value);
			else
			{
				OptionPath	inner = {path->what,
				full_name(path->group, option->name)};

				parse_object(&option->group, 1, value->val.binary.data,
							 &inner, out);
			}
			break;
	}
}

/* Give every option of a table its default, groups included. */
static void
set_presets(const Option *table, void *out)
{
	for (const Option *o = table; o->name; o++)
	{
		const char *preset = o->preset;

		switch (o->type)
		{
			case OPTION_TEXT:
			case OPTION_URL:
			case OPTION_FUNCTION:
				*SLOT(char *, out, o) = preset ? pstrdup(preset) : NULL;
				break;
			case OPTION_LIST:
				Assert(preset == NULL);
				*SLOT(char **, out, o) = NULL;
				break;
			case OPTION_INT:
				*SLOT(int, out, o) = preset ? pg_strtoint32(preset) : 0;
				break;
			case OPTION_REAL:
				*SLOT(double, out, o) = preset ? strtod(preset, NULL) : 0;
				break;
			case OPTION_BOOL:
				*SLOT(bool, out, o) = preset && strcmp(preset, "true") == 0;
				break;
			case OPTION_ENUM:
				*SLOT(int, out, o) = preset ? choice_index(o, preset) : -1;
				break;
			case OPTION_CREDENTIAL:
				Assert(preset == NULL);
				memset(SLOT(Credential, out, o), 0, sizeof(Credential));
				break;
			case OPTION_CREDENTIALS:
				Assert(preset == NULL);
				memset(SLOT(CredentialList, out, o), 0,
					   sizeof(CredentialList));
				break;
			case OPTION_JSON:
				*SLOT(Jsonb *, out, o) = preset ?
					DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
													   CStringGetDatum(preset))) :
					NULL;
				break;
			case OPTION_GROUP:
				set_presets(o->group, out);
				break;
		}
	}
}

/* The option of this name at this level; NULL: there is none. */
static const Option *
find_option(const Option *const *tables, int ntables, const char *name)
{
	for (int i = 0; i < ntables; i++)
		for (const Option *o = tables[i]; o->name; o++)
			if (strcmp(o->name, name) == 0)
				return o;
	return NULL;
}

/* Was this key given, with anything but null? */
static bool
is_given(JsonbContainer * object, const char *name)
{
	JsonbValue *value = getKeyJsonValueFromContainer(object, name,
													 strlen(name), NULL);

	return value && value->type != jbvNull;
}

/* One object against the tables of its level. */
static void
parse_object(const Option *const *tables, int ntables,
			 JsonbContainer * object, const OptionPath *path, void *out)
{
	JsonbIterator *it = JsonbIteratorInit(object);
	JsonbIteratorToken token;
	JsonbValue	value;
	const Option *option = NULL;

	while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
		{
			char	   *key = pnstrdup(value.val.string.val,
									   value.val.string.len);

			option = find_option(tables, ntables, key);
			if (option == NULL)
				unknown_key(tables, ntables, key, path);
		}
		else if (token == WJB_VALUE && value.type != jbvNull)
		{
			/* Its key came before. */
			Assert(option != NULL);
			parse_value(option, &value, path, out);
		}
	}

	for (int i = 0; i < ntables; i++)
		for (const Option *o = tables[i]; o->name; o++)
			if (o->required && !is_given(object, o->name))
				ereport(ERROR,
						(errcode(ERRCODE_MLINT_CONFIGURATION),
						 errmsg("%s is required", option_label(path, o)),
						 errdetail("It must be %s: %s.", type_phrase(o->type),
								   o->help)));
}

/* Fill *out from a JSON object, by the tables. See option.h. */
void
option_parse(const Option *const *tables, int ntables, Jsonb *options,
			 const char *what, void *out)
{
	OptionPath	path = {what, NULL};

	if (options == NULL)
		options = DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
													 CStringGetDatum("{}")));
	if (!JB_ROOT_IS_OBJECT(options))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("the options of %s must be a JSON object", what),
				 errhint("Write them as {\"option\": value, ...}.")));

	for (int i = 0; i < ntables; i++)
		set_presets(tables[i], out);
	parse_object(tables, ntables, &options->root, &path, out);
}

static void
check_credentials(const Option *table, const char *group, const void *parsed,
				  Oid role, const char *what)
{
	for (const Option *o = table; o->name; o++)
	{
		char	   *name = full_name(group, o->name);
		char	   *shown = psprintf("option \"%s\" of %s", name, what);

		if (o->type == OPTION_GROUP)
			check_credentials(o->group, name, parsed, role, what);
		else if (o->type == OPTION_CREDENTIAL)
		{
			const Credential *c = SLOT(const Credential, parsed, o);

			if (c->kind != CREDENTIAL_NONE)
				credential_check(c, role, shown);
		}
		else if (o->type == OPTION_CREDENTIALS)
		{
			const CredentialList *list = SLOT(const CredentialList, parsed, o);

			for (int i = 0; i < list->n; i++)
				credential_check(&list->items[i], role, shown);
		}
	}
}

void
option_check_credentials(const Option *const *tables, int ntables,
						 const void *parsed, Oid role, const char *what)
{
	for (int i = 0; i < ntables; i++)
		check_credentials(tables[i], NULL, parsed, role, what);
}

void
option_names(StringInfo json, Jsonb *options)
{
	JsonbIterator *it = JsonbIteratorInit(&options->root);
	JsonbIteratorToken token;
	JsonbValue	value;
	const char *separator = "";

	appendStringInfoChar(json, '[');
	(void) JsonbIteratorNext(&it, &value, false);
	while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE)
	{
		if (token != WJB_KEY)
			continue;
		appendStringInfoString(json, separator);
		escape_json(json, pnstrdup(value.val.string.val,
								   value.val.string.len));
		separator = ", ";
	}
	appendStringInfoChar(json, ']');
}

/* The type's name, as mlint.drivers shows it. */
static const char *
type_name(const Option *option)
{
	switch (option->type)
	{
		case OPTION_TEXT:
			return "text";
		case OPTION_URL:
			return "url";
		case OPTION_INT:
			return "integer";
		case OPTION_REAL:
			return "number";
		case OPTION_BOOL:
			return "boolean";
		case OPTION_ENUM:
			return "choice";
		case OPTION_CREDENTIAL:
			return "credential";
		case OPTION_CREDENTIALS:
			return "credential or array";
		case OPTION_LIST:
			return "list";
		case OPTION_FUNCTION:
			return "function";
		case OPTION_JSON:
		case OPTION_GROUP:
			return "object";
	}
	return "?";
}

static void
add_rows(ReturnSetInfo *result, const char *of, const Option *table,
		 const char *group)
{
	for (const Option *o = table; o->name; o++)
	{
		char	   *name = full_name(group, o->name);
		char	   *bounds;
		Datum		values[7];
		bool		nulls[7] = {0};

		if (o->type == OPTION_GROUP)
		{
			add_rows(result, of, o->group, name);
			continue;
		}
		bounds = bounds_text(o);
		values[0] = CStringGetTextDatum(of);
		values[1] = CStringGetTextDatum(name);
		values[2] = CStringGetTextDatum(type_name(o));
		values[3] = o->preset ? CStringGetTextDatum(o->preset) : (Datum) 0;
		nulls[3] = o->preset == NULL;
		values[4] = bounds ? CStringGetTextDatum(bounds) : (Datum) 0;
		nulls[4] = bounds == NULL;
		values[5] = BoolGetDatum(o->required);
		values[6] = CStringGetTextDatum(o->help);
		tuplestore_putvalues(result->setResult, result->setDesc, values,
							 nulls);
	}
}

/* Every option of a table, groups flattened, for the views that show them. */
void
option_rows(ReturnSetInfo *result, const char *of, const Option *table)
{
	add_rows(result, of, table, NULL);
}
