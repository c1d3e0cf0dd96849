/*
 * chain.c
 *		Fuzz what reads chains and keys that others give us (src/certs/chain.c,
 *		verify.c, key.c).
 *
 * Sources: certs/chain.c certs/verify.c certs/key.c common/bio.c common/crypto.c
 *
 * An input that begins with 'p' is a chain as it came, in PEM; with 'd' it is
 * certificates in DER, each after its length in two bytes, which are made PEM
 * of here, since nothing that is changed at random stays base64 of anything;
 * with 'k' it is a private key in PEM, with 'K' one in DER.
 */
#include "postgres.h"

#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>

#include "certs/x509.h"
#include "shim/server.h"

extern int	LLVMFuzzerTestOneInput(const uint8 *data, size_t size);

static void
promise(bool kept, const char *what)
{
	if (!kept)
	{
		fputs("broken promise: ", stderr);
		fputs(what, stderr);
		fputs("\n", stderr);
		abort();
	}
}

static void
check_ascii(const char *text)
{
	promise(text !=NULL, "texts are there");
	for (const char *p = text; *p; p++)
		promise((unsigned char) *p >= ' ' && (unsigned char) *p < 0x7f, "texts are ASCII");
}

static void
check_chain(const Chain *chain)
{
	promise(chain->length >= 1 && chain->length <= CHAIN_MAX_LENGTH, "a chain has a length");
	check_ascii(chain->serial);
	check_ascii(chain->issuer);
	check_ascii(chain->subject);
	check_ascii(chain->key_type);
	if (chain->ari_id)
		check_ascii(chain->ari_id);
	promise(strlen(chain->issuer) < 2000 && strlen(chain->subject) < 2000, "subjects are bounded");
	for (int i = 0; i < chain->nnames; i++)
	{
		check_ascii(chain->names[i]);
		promise(chain->names[i][0] && strlen(chain->names[i]) <= 255, "names are bounded");
	}
}

/* What was read and written is read the same. */
static void
check_again(const Chain *chain)
{
	char	   *error = NULL;
	Chain	   *again = chain_read(chain->pem, &error);

	promise(again != NULL, "a normalized chain is one");
	promise(strcmp(again->pem, chain->pem) == 0, "and normal");
	promise(memcmp(again->fingerprint, chain->fingerprint, CRYPTO_SHA256_BYTES) == 0,
			"with the same leaf");
	again = chain_read(chain->leaf, &error);
	promise(again != NULL && strcmp(again->serial, chain->serial) == 0, "a leaf is a chain");
}

static void
read_chain(const uint8 *data, size_t size)
{
	static CertificateName names[] = {{"a.example.org", false, false}, {"127.0.0.1", true, false}};
	char	   *pem = palloc(size + 1);
	char	   *error = NULL;
	Chain	   *chain;

	memcpy(pem, data, size);
	pem[size] = '\0';
	chain = chain_read(pem, &error);
	if (chain == NULL)
	{
		promise(error != NULL, "what is wrong is said");
		check_ascii(error);
		return;
	}
	check_chain(chain);
	check_again(chain);
	(void) chain_verify(chain, names, lengthof(names), NULL, 848500000 * USECS_PER_SEC);
	(void) chain_verify(chain, NULL, 0, NULL, 0);
}

static void
read_key(const uint8 *data, size_t size)
{
	char	   *pem = palloc(size + 1);
	char	   *error = NULL;
	char	   *key;

	memcpy(pem, data, size);
	pem[size] = '\0';
	key = key_read(pem, &error);
	promise(key != NULL || error != NULL, "a key, or what is wrong with it");
	if (key)
		promise(key_read(key, &error) != NULL, "a key that was written is one");
}

/* PEM of a piece of DER, appended; how long it is. */
static size_t
put_pem(const char *what, const uint8 *der, size_t len, char *out)
{
	char	   *at = out;

	at += strlen(strcat(strcat(strcpy(at, "-----BEGIN "), what), "-----\n"));
	while (len > 0)
	{
		size_t		n = len > 48 ? 48 : len;

		at += EVP_EncodeBlock((unsigned char *) at, der, (int) n);
		*at++ = '\n';
		der += n;
		len -= n;
	}
	*at = '\0';
	return at + strlen(strcat(strcat(strcpy(at, "-----END "), what), "-----\n")) - out;
}

int
LLVMFuzzerTestOneInput(const uint8 *data, size_t size)
{
	char	   *pem;
	size_t		len = 0;

	if (size < 2)
		return 0;
	if (data[0] == 'p')
		(void) server_try(read_chain, data + 1, size - 1);
	else if (data[0] == 'k')
		(void) server_try(read_key, data + 1, size - 1);
	else if (data[0] == 'd' || data[0] == 'K')
	{
		bool		key = data[0] == 'K';

		pem = malloc(size * 64 + 200);
		data++;
		size--;
		while (size > (key ? 0 : 2))
		{
			size_t		n = key ? size : (size_t) data[0] << 8 | data[1];

			data += key ? 0 : 2;
			size -= key ? 0 : 2;
			if (n > size)
				n = size;
			len += put_pem(key ? "PRIVATE KEY" : "CERTIFICATE", data, n, pem + len);
			data += n;
			size -= n;
		}
		(void) server_try(key ? read_key : read_chain, (uint8 *) pem, len);
		free(pem);
	}
	return 0;
}
