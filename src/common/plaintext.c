/*
 * plaintext.c
 *		Between the database's text and UTF-8 bytes, leaving no copy behind.
 *
 * The conversion functions of PostgreSQL return their argument when there is
 * nothing to convert; that is how we tell our copies from the caller's.
 */
#include "postgres.h"

#include "common/crypto.h"
#include "common/plaintext.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"

Plaintext
plaintext_take(Datum argument)
{
	Plaintext	p = {0};
	struct varlena *given = (struct varlena *) DatumGetPointer(argument);
	struct varlena *value = pg_detoast_datum_packed(given);
	char	   *data = VARDATA_ANY(value);
	int			len = VARSIZE_ANY_EXHDR(value);
	char	   *utf8 = pg_server_to_any(data, len, PG_UTF8);

	if (value != given)
		p.detoasted = value;
	if (utf8 != data)
	{
		p.converted = utf8;
		len = strlen(utf8);
	}
	p.data = utf8;
	p.len = len;
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
	char	   *own = pg_any_to_server(data, (int) len, PG_UTF8);
	text	   *result;

	if (own == data)
		return cstring_to_text_with_len(data, len);
	result = cstring_to_text(own);
	crypto_wipe(own, strlen(own));
	pfree(own);
	return result;
}
