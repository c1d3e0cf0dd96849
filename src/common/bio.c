/*
 * bio.c
 *		What OpenSSL has written, as memory of ours.
 */
#include "postgres.h"

#include "common/bio.h"

char *
bio_text(BIO *bio, size_t *len)
{
	char	   *data;
	long		n = BIO_get_mem_data(bio, &data);
	char	   *copy = palloc_extended(n + 1, MCXT_ALLOC_NO_OOM);

	if (copy == NULL)
		return NULL;
	/* Nothing written: there is no data, either. */
	if (n > 0)
		memcpy(copy, data, n);
	copy[n] = '\0';
	*len = n;
	return copy;
}
