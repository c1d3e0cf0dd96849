/*
 * made.c
 *		What is written down of something that was made; see made.h.
 */
#include "postgres.h"

#include "certs/dns/made.h"
#include "utils/builtins.h"
#include "utils/json.h"

static Jsonb *
from_text(const char *text)
{
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
											  CStringGetDatum(text)));
}

Jsonb *
made_of(const char *key,...)
{
	StringInfoData text;
	va_list		args;

	initStringInfo(&text);
	appendStringInfoChar(&text, '{');
	va_start(args, key);
	for (const char *k = key; k; k = va_arg(args, const char *))
	{
		if (k != key)
			appendStringInfoString(&text, ", ");
		escape_json(&text, k);
		appendStringInfoString(&text, ": ");
		escape_json(&text, va_arg(args, const char *));
	}
	va_end(args);
	appendStringInfoChar(&text, '}');
	return from_text(text.data);
}

Jsonb *
made_with(Jsonb *made, const char *key, Jsonb *object)
{
	StringInfoData text;

	if (object == NULL)
		return made;
	initStringInfo(&text);
	(void) JsonbToCString(&text, &made->root, VARSIZE(made));
	/* Nothing but members precedes the brace, and there are some. */
	text.		data[--text.len] = '\0';

	appendStringInfoString(&text, ", ");
	escape_json(&text, key);
	appendStringInfoString(&text, ": ");
	(void) JsonbToCString(&text, &object->root, VARSIZE(object));
	appendStringInfoChar(&text, '}');
	return from_text(text.data);
}

static JsonbValue *
member(Jsonb *made, const char *key, JsonbValue *value)
{
	return made == NULL || !JB_ROOT_IS_OBJECT(made) ? NULL :
		getKeyJsonValueFromContainer(&made->root, key, strlen(key), value);
}

char *
made_text(Jsonb *made, const char *key)
{
	JsonbValue	value;

	if (member(made, key, &value) == NULL || value.type != jbvString)
		return NULL;
	return pnstrdup(value.val.string.val, value.val.string.len);
}

Jsonb *
made_object(Jsonb *made, const char *key)
{
	JsonbValue	value;

	if (member(made, key, &value) == NULL || value.type != jbvBinary)
		return NULL;
	return JsonbValueToJsonb(&value);
}
