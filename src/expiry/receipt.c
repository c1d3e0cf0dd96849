/*
 * receipt.c
 *		Sign receipts of erasure, and verify them; see receipt.h.
 *
 * What is signed can be written again by whoever has the receipt, in any
 * language: a receipt has only strings, whole numbers, booleans, nulls, arrays
 * and objects with keys of ASCII, for which RFC 8785 is what JSON libraries call
 * sorted and compact.
 *
 * The private key is in memory for the length of a signature. OpenSSL's
 * objects are freed before anything can raise.
 */
#include "postgres.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/numeric.h"
#include "utils/snapmgr.h"

#include "common/compat.h"
#include "common/crypto.h"
#include "common/owner.h"
#include "expiry/receipt.h"
#include "rotation/rotation.h"
#include "secrets/store.h"

PG_FUNCTION_INFO_V1(mlint_erasure_receipt_verify);

#define SIGNATURE_BYTES		64	/* Ed25519 */
#define ALGORITHM			"Ed25519"

/* ---- the bytes that are signed ---- */

static void canonical_container(StringInfo out, JsonbContainer * container,
								const char *except);

/* A string as RFC 8785 writes it; in UTF-8. */
static void
canonical_string(StringInfo out, const char *data, int len)
{
	char	   *utf8 = (char *) pg_do_encoding_conversion((unsigned char *) unconstify(char *, data),
														  len, GetDatabaseEncoding(), PG_UTF8);
	int			n = utf8 == data ? len : strlen(utf8);

	appendStringInfoChar(out, '"');
	for (int i = 0; i < n; i++)
	{
		unsigned char c = (unsigned char) utf8[i];
		static const char shorts[] = "btn_fr";	/* 8 to 13 */

		if (c == '"' || c == '\\')
			appendStringInfo(out, "\\%c", c);
		else if (c >= 8 && c <= 13 && c != 11)
			appendStringInfo(out, "\\%c", shorts[c - 8]);
		else if (c < ' ')
			appendStringInfo(out, "\\u%04x", c);
		else
			appendStringInfoChar(out, c);
	}
	appendStringInfoChar(out, '"');
}

static void
canonical_value(StringInfo out, const JsonbValue *value)
{
	switch (value->type)
	{
		case jbvNull:
			appendStringInfoString(out, "null");
			break;
		case jbvBool:
			appendStringInfoString(out, value->val.boolean ? "true" : "false");
			break;
		case jbvNumeric:
			appendStringInfoString(out,
								   DatumGetCString(DirectFunctionCall1(numeric_out,
																	   NumericGetDatum(value->val.numeric))));
			break;
		case jbvString:
			canonical_string(out, value->val.string.val,
							 value->val.string.len);
			break;
		case jbvBinary:
			canonical_container(out, value->val.binary.data, NULL);
			break;
		default:
			elog(ERROR, "unexpected type of a JSON value");
	}
}

typedef struct Member
{
	char	   *key;
	JsonbValue	value;
} Member;

static int
by_key(const void *a, const void *b)
{
	return strcmp(((const Member *) a)->key, ((const Member *) b)->key);
}

/* An array or object; of an object all members but one. */
static void
canonical_container(StringInfo out, JsonbContainer * container,
					const char *except)
{
	JsonbIterator *it = JsonbIteratorInit(container);
	bool		array = JsonContainerIsArray(container);
	int			size = JsonContainerSize(container);
	Member	   *members = palloc(Max(size, 1) * sizeof(Member));
	int			n = 0;
	JsonbValue	v;
	JsonbIteratorToken token;

	check_stack_depth();
	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			members[n].key = pnstrdup(v.val.string.val, v.val.string.len);
		else if (token == WJB_VALUE || token == WJB_ELEM)
			members[n++].value = v;
	}
	if (!array)
		qsort(members, n, sizeof(Member), by_key);
	appendStringInfoChar(out, array ? '[' : '{');
	for (int i = 0, written = 0; i < n; i++)
	{
		if (!array && except && strcmp(members[i].key, except) == 0)
			continue;
		if (written++ > 0)
			appendStringInfoChar(out, ',');
		if (!array)
		{
			canonical_string(out, members[i].key, strlen(members[i].key));
			appendStringInfoChar(out, ':');
		}
		canonical_value(out, &members[i].value);
	}
	appendStringInfoChar(out, array ? ']' : '}');
}

/* What the signature of a receipt is over. */
static StringInfoData
canonical(Jsonb *receipt)
{
	StringInfoData out;

	initStringInfo(&out);
	canonical_container(&out, &receipt->root, "signature");
	return out;
}

/* ---- keys and signatures ---- */

/*
 * Sign; and the public key of the private one, which is palloc'd. False when
 * the key, PEM, is no Ed25519 key. One under a passphrase is not asked for on
 * a terminal.
 */
static bool
sign(const char *pem, size_t pem_len, const StringInfoData *data,
	 uint8 *signature, char **public_key)
{
	BIO		   *in = BIO_new_mem_buf(pem, (int) pem_len);
	BIO		   *out = BIO_new(BIO_s_mem());
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();
	EVP_PKEY   *pair = in ? PEM_read_bio_PrivateKey(in, NULL, NULL, "") : NULL;
	size_t		len = SIGNATURE_BYTES;
	char	   *written;
	bool		ok = pair && out && ctx && EVP_PKEY_is_a(pair, "ED25519") &&
	EVP_DigestSignInit(ctx, NULL, NULL, NULL, pair) == 1 &&
	EVP_DigestSign(ctx, signature, &len, (const uint8 *) data->data,
				   data->len) == 1 &&
	PEM_write_bio_PUBKEY(out, pair) == 1;

	*public_key = NULL;
	if (ok)
	{
		long		n = BIO_get_mem_data(out, &written);

		*public_key = palloc_extended(n + 1, MCXT_ALLOC_NO_OOM);
		if (*public_key)
		{
			memcpy(*public_key, written, n);
			(*public_key)[n] = '\0';
		}
	}
	EVP_PKEY_free(pair);
	EVP_MD_CTX_free(ctx);
	BIO_free(in);
	BIO_free(out);
	ERR_clear_error();
	return *public_key != NULL;
}

/* Is it the signature of the data under the public key, PEM? */
static bool
verify(const char *pem, const StringInfoData *data, const uint8 *signature)
{
	BIO		   *in = BIO_new_mem_buf(pem, -1);
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();
	EVP_PKEY   *key = in ? PEM_read_bio_PUBKEY(in, NULL, NULL, NULL) : NULL;
	bool		ok = key && ctx && EVP_PKEY_is_a(key, "ED25519") &&
	EVP_DigestVerifyInit(ctx, NULL, NULL, NULL, key) == 1 &&
	EVP_DigestVerify(ctx, signature, SIGNATURE_BYTES,
					 (const uint8 *) data->data, data->len) == 1;

	EVP_PKEY_free(key);
	EVP_MD_CTX_free(ctx);
	BIO_free(in);
	ERR_clear_error();
	return ok;
}

/* The private key as it is now, made within this transaction too. */
static bool
read_key(SecretValue *key)
{
	bool		found;

	PushActiveSnapshot(GetLatestSnapshot());
	found = secret_read(RECEIPT_SECRET, NULL, key);
	PopActiveSnapshot();
	return found;
}

/*
 * The private key, made when there is none. It belongs to the bootstrap
 * superuser, so that nobody has it for having been the first to erase.
 */
static void
take_key(SecretValue *key)
{
	static const SecretAbout about = {
		.type = "encryption_key",
		.description = "Signs the receipts of mlint.erase_subject()"
	};
	OwnerScope	scope;
	Generated	made;
	int			version;

	if (read_key(key))
		return;
	owner_begin(&scope);
	if (SPI_execute("LOCK TABLE mlint.erasure IN SHARE ROW EXCLUSIVE MODE",
					false, 0) < 0)
		elog(ERROR, "could not lock mlint.erasure");
	owner_end(&scope);
	if (read_key(key))
		return;
	generator_run(generator_parse(DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
																	 CStringGetDatum("{\"kind\": \"ed25519\"}"))),
								  GetUserId()),
				  RECEIPT_SECRET, GetUserId(), &made);
	owner_begin(&scope);
	version = store_put_version(RECEIPT_SECRET, made.data, made.len, &about, true);
	owner_end(&scope);
	key->data = made.data;
	key->len = made.len;
	key->version = psprintf("%d", version);
}

/* Publish the public key of a version, if that was not done before. */
static void
publish_key(int version, const char *public_key)
{
	Oid			types[] = {TEXTOID, INT4OID, TEXTOID};
	Datum		values[] = {CStringGetTextDatum(RECEIPT_SECRET),
	Int32GetDatum(version), CStringGetTextDatum(public_key)};
	OwnerScope	scope;

	owner_begin(&scope);
	owner_run(NULL, "INSERT INTO mlint.secret_public_key"
			  " (secret_id, version, public_key)"
			  " SELECT s.id, $2, $3 FROM mlint.secret s"
			  " WHERE s.name = $1 ON CONFLICT DO NOTHING",
			  SPI_OK_INSERT, 3, types, values, NULL);
	owner_end(&scope);
}

Jsonb *
receipt_sign(Jsonb *receipt)
{
	StringInfoData data = canonical(receipt);
	SecretValue key;
	uint8		signature[SIGNATURE_BYTES];
	char		base64[CRYPTO_BASE64_BYTES(SIGNATURE_BYTES)];
	char	   *public_key;
	Datum		block;
	int			version;
	bool		ok;

	take_key(&key);
	version = pg_strtoint32(key.version);
	ok = sign(key.data, key.len, &data, signature, &public_key);
	crypto_wipe(key.data, key.len);
	if (!ok)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("secret \"%s\" does not hold a private key that can sign receipts",
						RECEIPT_SECRET),
				 errdetail("It must be an Ed25519 key, PKCS#8 in PEM."),
				 errhint("Give it such a value; or drop the secret, having kept the public keys of earlier receipts, and another is made.")));
	publish_key(version, public_key);
	crypto_base64(signature, sizeof(signature), base64);
	block = DirectFunctionCall1(jsonb_in,
								CStringGetDatum(psprintf("{\"signature\": {\"algorithm\": \""
														 ALGORITHM "\", \"key_version\": %d,"
														 " \"value\": \"%s\"}}",
														 version, base64)));
	return DatumGetJsonbP(DirectFunctionCall2(jsonb_concat,
											  JsonbPGetDatum(receipt),
											  block));
}

/* The public key of a version of the secret, palloc'd, or NULL. */
static char *
public_key(int version)
{
	MemoryContext caller = CurrentMemoryContext;
	Oid			types[] = {TEXTOID, INT4OID};
	Datum		values[] = {CStringGetTextDatum(RECEIPT_SECRET),
	Int32GetDatum(version)};
	OwnerScope	scope;
	char	   *found = NULL;

	owner_begin(&scope);
	if (SPI_execute_with_args("SELECT k.public_key"
							  " FROM mlint.secret_public_key k"
							  " JOIN mlint.secret s ON s.id = k.secret_id"
							  " WHERE s.name = $1 AND k.version = $2",
							  2, types, values, NULL, false,
							  1) != SPI_OK_SELECT)
		elog(ERROR, "could not read mlint.secret_public_key");
	if (SPI_processed > 0)
		found = MemoryContextStrdup(caller,
									SPI_getvalue(SPI_tuptable->vals[0],
												 SPI_tuptable->tupdesc, 1));
	owner_end(&scope);
	return found;
}

/* A member of an object, of this type. */
static bool
member(JsonbContainer * object, const char *name, enum jbvType type,
	   JsonbValue *value)
{
	return getKeyJsonValueFromContainer(object, name, strlen(name), value) &&
		value->type == type;
}

/* mlint.erasure_receipt_verify(receipt) */
Datum
mlint_erasure_receipt_verify(PG_FUNCTION_ARGS)
{
	Jsonb	   *receipt = PG_GETARG_JSONB_P(0);
	JsonbContainer *s;
	JsonbValue	about;
	JsonbValue	algorithm;
	JsonbValue	version;
	JsonbValue	value;
	uint8		signature[SIGNATURE_BYTES + 2];
	StringInfoData data;
	char	   *number;
	char	   *pem;

	if (!JB_ROOT_IS_OBJECT(receipt) ||
		!member(&receipt->root, "signature", jbvBinary, &about))
		PG_RETURN_BOOL(false);
	s = about.val.binary.data;
	if (!JsonContainerIsObject(s) ||
		!member(s, "algorithm", jbvString, &algorithm) ||
		algorithm.val.string.len != strlen(ALGORITHM) ||
		memcmp(algorithm.val.string.val, ALGORITHM, strlen(ALGORITHM)) != 0 ||
		!member(s, "key_version", jbvNumeric, &version) ||
		!member(s, "value", jbvString, &value) ||
		value.val.string.len != CRYPTO_BASE64_BYTES(SIGNATURE_BYTES) - 1 ||
		crypto_unbase64(value.val.string.val, value.val.string.len,
						signature) != SIGNATURE_BYTES)
		PG_RETURN_BOOL(false);
	number = DatumGetCString(DirectFunctionCall1(numeric_out,
												 NumericGetDatum(version.val.numeric)));
	if (strlen(number) > 9 || strspn(number, "0123456789") != strlen(number))
		PG_RETURN_BOOL(false);
	pem = public_key((int) strtol(number, NULL, 10));
	data = canonical(receipt);
	PG_RETURN_BOOL(pem != NULL && verify(pem, &data, signature));
}
