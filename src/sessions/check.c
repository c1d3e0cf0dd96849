/*
 * check.c
 *		Arguments of the room's functions; see check.h.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "catalog/pg_type.h"
#include "common/argument.h"
#include "sessions/check.h"
#include "utils/builtins.h"

#define PAGE_SIZE_MAX	1000

void
check_name(const char *name, const char *what)
{
	size_t		len = strlen(name);

	if (len == 0 || len > SESSIONS_NAME_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be 1 to %d bytes long, not %zu", what,
						SESSIONS_NAME_BYTES, len)));
	for (const char *p = name; *p; p++)
	{
		if ((unsigned char) *p < ' ' || *p == 0x7f)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("%s must not contain control characters", what)));
	}
}

char *
name_argument(FunctionCallInfo fcinfo, int n, const char *what)
{
	char	   *name = required_text(fcinfo, n, what);

	check_name(name, what);
	return name;
}

char *
optional_name_argument(FunctionCallInfo fcinfo, int n, const char *what)
{
	char	   *name;

	if (PG_ARGISNULL(n))
		return NULL;
	name = text_to_cstring(PG_GETARG_TEXT_PP(n));
	if (name[0] != '\0')
		check_name(name, what);
	return name;
}

static int
compare_texts(const void *a, const void *b)
{
	return strcmp(*(char *const *) a, *(char *const *) b);
}

ArrayType *
tags_argument(FunctionCallInfo fcinfo, int n, const char *what)
{
	ArrayType  *array;
	Datum	   *elements;
	bool	   *nulls;
	char	  **texts;
	int			count;
	int			kept = 0;

	if (PG_ARGISNULL(n))
		return construct_empty_array(TEXTOID);
	array = PG_GETARG_ARRAYTYPE_P(n);
	if (ARR_NDIM(array) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				 errmsg("%s must be a one-dimensional array", what)));
	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &elements,
					  &nulls, &count);
	if (count > SESSIONS_TAGS)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("%s must not be more than %d, not %d", what,
						SESSIONS_TAGS, count)));
	if (count == 0)
		return construct_empty_array(TEXTOID);
	texts = palloc(sizeof(char *) * count);
	for (int i = 0; i < count; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("%s must not contain null", what)));
		texts[i] = TextDatumGetCString(elements[i]);
		check_name(texts[i], psprintf("each of %s", what));
	}
	qsort(texts, count, sizeof(char *), compare_texts);
	for (int i = 0; i < count; i++)
	{
		if (i == 0 || strcmp(texts[i], texts[i - 1]) != 0)
			elements[kept++] = CStringGetTextDatum(texts[i]);
	}
	return construct_array(elements, kept, TEXTOID, -1, false, TYPALIGN_INT);
}

Jsonb *
object_argument(FunctionCallInfo fcinfo, int n, const char *what)
{
	Jsonb	   *object;

	if (PG_ARGISNULL(n))
		return DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
												  CStringGetDatum("{}")));
	if (toast_raw_datum_size(PG_GETARG_DATUM(n)) > SESSIONS_METADATA_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("%s must not be larger than %d bytes", what,
						SESSIONS_METADATA_BYTES),
				 errhint("What is longer is content.")));
	object = PG_GETARG_JSONB_P(n);
	if (!JB_ROOT_IS_OBJECT(object))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be a JSON object", what)));
	return object;
}

TimestampTz
time_argument(FunctionCallInfo fcinfo, int n, const char *what)
{
	if (PG_ARGISNULL(n))
		return 0;
	if (TIMESTAMP_NOT_FINITE(PG_GETARG_TIMESTAMPTZ(n)))
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("%s must be a finite time", what)));
	return PG_GETARG_TIMESTAMPTZ(n);
}

int
page_size_argument(FunctionCallInfo fcinfo, int n)
{
	int			size = PG_ARGISNULL(n) ? 0 : PG_GETARG_INT32(n);

	if (size < 1 || size > PAGE_SIZE_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("page_size must be between 1 and %d", PAGE_SIZE_MAX)));
	return size;
}

int64
page_argument(FunctionCallInfo fcinfo, int n)
{
	int64		page = PG_ARGISNULL(n) ? 0 : PG_GETARG_INT32(n);

	if (page < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("page must be at least 1"),
				 errhint("Pages are counted from 1.")));
	return page;
}
