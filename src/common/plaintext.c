/*
 * plaintext.c
 *		Between the database's text and UTF-8 bytes, leaving no copy behind.
 *
 * When there is nothing to convert the text itself is returned; that is how our
 * copies are told from the caller's.
 */
#include "postgres.h"

#include "catalog/namespace.h"

#include "common/crypto.h"
#include "common/compat.h"
#include "common/plaintext.h"

#include "mb/pg_wchar.h"
#include "utils/builtins.h"

/*
 * Convert between the database's encoding and UTF-8. PostgreSQL's own errors
 * show the bytes that have no equivalent; ours do not. Returns the text itself
 * when there is nothing to convert.
 */
static char *
convert(char *text, size_t len, int from, int to, size_t *result_len)
{
	Oid			conversion = InvalidOid;
	char	   *result;
	int			converted;

	*result_len = len;
	if (from == to)
		return text;

	if (from == PG_SQL_ASCII || to == PG_SQL_ASCII)
	{
		if (pg_verify_mbstr(PG_UTF8, text, (int) len, true))
			return text;
	}
	else
		conversion = FindDefaultConversionProc(from, to);
	if (OidIsValid(conversion))
	{
		size_t		room = len * MAX_CONVERSION_GROWTH + 1;

		result = palloc(room);
		converted = pg_do_encoding_conversion_buf(conversion, from, to,
												  (unsigned char *) text,
												  (int) len,
												  (unsigned char *) result,
												  (int) room, true);
		*result_len = strlen(result);
		if (converted == (int) len)
			return result;
		crypto_wipe(result, *result_len);
		pfree(result);
	}
	ereport(ERROR,
			(errcode(ERRCODE_UNTRANSLATABLE_CHARACTER),
			 errmsg("a character of this text has no equivalent in encoding \"%s\"",
					pg_encoding_to_char(to)),
			 errhint("Use the function that takes or returns bytes, if there is one.")));
}

Plaintext
plaintext_take(Datum argument)
{
	Plaintext	p = {0};
	struct varlena *given = (struct varlena *) DatumGetPointer(argument);
	struct varlena *value = pg_detoast_datum_packed(given);
	char	   *data = VARDATA_ANY(value);
	char	   *utf8;

	if (value != given)
		p.detoasted = value;
	PG_TRY();
	{
		utf8 = convert(data, VARSIZE_ANY_EXHDR(value), GetDatabaseEncoding(),
					   PG_UTF8, &p.len);
	}
	PG_CATCH();
	{
		plaintext_wipe(&p);
		PG_RE_THROW();
	}
	PG_END_TRY();
	if (utf8 != data)
		p.converted = utf8;
	p.data = utf8;
	return p;
}

void
plaintext_wipe(Plaintext *p)
{
	if (p->detoasted)
	{
		crypto_wipe(p->detoasted, VARSIZE_ANY(p->detoasted));
		pfree(p->detoasted);
	}
	if (p->converted)
	{
		crypto_wipe(p->converted, p->len);
		pfree(p->converted);
	}
	memset(p, 0, sizeof(*p));
}

text *
plaintext_give(char *data, size_t len)
{
	size_t		own_len;
	char	   *own = convert(data, len, PG_UTF8, GetDatabaseEncoding(),
							  &own_len);
	text	   *result = cstring_to_text_with_len(own, own_len);

	if (own != data)
	{
		crypto_wipe(own, own_len);
		pfree(own);
	}
	return result;
}
