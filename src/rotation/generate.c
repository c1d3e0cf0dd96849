/*
 * generate.c
 *		New values: passwords, random bytes, UUIDs, key pairs, or what a
 *		function of the user's returns.
 *
 * Each character of a password is drawn from the alphabet by rejection, so
 * that all are equally likely; a password that must have a character of each
 * class and has not is thrown away as a whole, so that all that remain are
 * equally likely too.
 *
 * A key pair's value is the private key, PKCS#8 in PEM; the public key goes
 * along with it, to be kept where it may be read.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/compat.h"
#include "common/crypto.h"
#include "common/errors.h"
#include "common/keypair.h"
#include "common/plaintext.h"
#include "common/userfunction.h"
#include "miscadmin.h"
#include "rotation/rotation.h"
#include "secrets/secrets.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#define ALPHABET_DEFAULT \
	"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
#define FUNCTION_TIMEOUT_MS	30000

typedef enum GeneratorKind
{
	GENERATE_FUNCTION,
	GENERATE_PASSWORD,
	GENERATE_HEX,
	GENERATE_UUID,
	GENERATE_RSA,
	GENERATE_EC,
	GENERATE_ED25519
} GeneratorKind;

/* In GeneratorKind's order. */
static const char *const kinds[] = {"function", "password", "hex", "uuid",
"rsa", "ec", "ed25519", NULL};

struct Generator
{
	int			kind;
	char	   *function;
	int			length;
	char	   *alphabet;
	bool		each_class;
	int			bytes;
	int			bits;
	int			curve;
};

static const char *const curves[] = {"P-256", "P-384", "P-521", NULL};

#define AT(member) offsetof(Generator, member)
#define KIND {"kind", OPTION_ENUM, AT(kind), "function", 0, 0, kinds, NULL, \
	false, "what is generated"}

static const Option function_options[] = {
	KIND,
	{"function", OPTION_FUNCTION, AT(function), NULL, 0, 0, NULL, NULL,
	true, "function (text) that returns a value for the secret of this name"},
	{NULL}
};
static const Option password_options[] = {
	KIND,
	{"length", OPTION_INT, AT(length), "32", 8, 1024, NULL, NULL,
	false, "characters"},
	{"alphabet", OPTION_TEXT, AT(alphabet), ALPHABET_DEFAULT, 0, 0, NULL, NULL,
	false, "the characters to choose from"},
	{"each_class", OPTION_BOOL, AT(each_class), "false", 0, 0, NULL, NULL,
	false, "one at least of each class that the alphabet has: upper case, lower case, digits, others"},
	{NULL}
};
static const Option hex_options[] = {
	KIND,
	{"bytes", OPTION_INT, AT(bytes), "32", 8, 4096, NULL, NULL,
	false, "random bytes; the value has two digits for each"},
	{NULL}
};
static const Option bare_options[] = {KIND, {NULL}};
static const Option rsa_options[] = {
	KIND,
	{"bits", OPTION_INT, AT(bits), "3072", 2048, 8192, NULL, NULL,
	false, "size of the modulus"},
	{NULL}
};
static const Option ec_options[] = {
	KIND,
	{"curve", OPTION_ENUM, AT(curve), "P-256", 0, 0, curves, NULL,
	false, "named curve"},
	{NULL}
};

/* In GeneratorKind's order. */
static const Option *const tables[] = {function_options, password_options,
	hex_options, bare_options, rsa_options, ec_options, bare_options
};

static const Oid name_argument[] = {TEXTOID};
static const UserFunctionKind generator_function = {
	.nargs = 1,
	.types = name_argument,
	.shown = "text",
	.takes = "one argument of type text, the name of the secret, and returns text or bytea",
	.owner_did = "set the rotation"
};

/* The class that a character belongs to, as a bit. */
static int
character_class(char c)
{
	if (c >= 'A' && c <= 'Z')
		return 1;
	if (c >= 'a' && c <= 'z')
		return 2;
	if (c >= '0' && c <= '9')
		return 4;
	return 8;
}

/* The classes that a text has. */
static int
classes_of(const char *text, size_t len)
{
	int			classes = 0;

	for (size_t i = 0; i < len; i++)
		classes |= character_class(text[i]);
	return classes;
}

/* An alphabet has printable ASCII characters, each once. */
static void
check_alphabet(const char *alphabet)
{
	bool		seen[128] = {false};

	for (const char *p = alphabet; *p; p++)
	{
		unsigned char c = (unsigned char) *p;

		if (c <= ' ' || c >= 127 || seen[c])
			ereport(ERROR,
					(errcode(ERRCODE_MLINT_CONFIGURATION),
					 errmsg("option \"alphabet\" of the generator must have printable ASCII characters, each once")));
		seen[c] = true;
	}
	if (strlen(alphabet) < 10)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("option \"alphabet\" of the generator must have 10 characters or more")));
}

static Oid
find_function(const Generator *g, Oid owner)
{
	Oid			function = user_function(g->function, &generator_function,
										 InvalidOid, owner, "function", false);
	Oid			type = get_func_rettype(function);

	if (type != TEXTOID && type != BYTEAOID)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("option \"function\": %s(text) must return text or bytea",
						g->function)));
	return function;
}

Generator *
generator_parse(Jsonb *json, Oid owner)
{
	Generator  *g = palloc0(sizeof(Generator));
	const Option *table;

	g->kind = rotation_kind(json, kinds, "the generator");
	table = tables[g->kind];
	option_parse(&table, 1, json, "the generator", g);
	g->kind = rotation_kind(json, kinds, "the generator");
	if (g->kind == GENERATE_FUNCTION)
		(void) find_function(g, owner);
	if (g->kind == GENERATE_PASSWORD)
		check_alphabet(g->alphabet);
	return g;
}

bool
generator_by_function(Jsonb *json)
{
	return rotation_kind(json, kinds, "the generator") == GENERATE_FUNCTION;
}

/* A number below n, all equally likely; n is at most 256. */
static int
random_below(int n)
{
	int			limit = 256 - 256 % n;
	uint8		byte;

	do
	{
		crypto_random(&byte, 1);
	} while (byte >= limit);
	return byte % n;
}

static void
generate_password(const Generator *g, Generated *out)
{
	int			n = strlen(g->alphabet);
	int			wanted = g->each_class ? classes_of(g->alphabet, n) : 0;

	out->len = g->length;
	out->data = palloc(out->len + 1);
	do
	{
		for (size_t i = 0; i < out->len; i++)
			out->data[i] = g->alphabet[random_below(n)];
		CHECK_FOR_INTERRUPTS();
	} while ((classes_of(out->data, out->len) & wanted) != wanted);
	out->data[out->len] = '\0';
}

static void
generate_hex(const Generator *g, Generated *out)
{
	uint8	   *bytes = palloc(g->bytes);

	crypto_random(bytes, g->bytes);
	out->len = 2 * g->bytes;
	out->data = palloc(out->len + 1);
	crypto_hex(bytes, g->bytes, out->data);
	crypto_wipe(bytes, g->bytes);
	pfree(bytes);
}

/* RFC 9562, version 4. */
static void
generate_uuid(Generated *out)
{
	uint8		b[16];
	char		hex[33];

	crypto_random(b, sizeof(b));
	b[6] = (b[6] & 0x0f) | 0x40;
	b[8] = (b[8] & 0x3f) | 0x80;
	crypto_hex(b, sizeof(b), hex);
	out->data = psprintf("%.8s-%.4s-%.4s-%.4s-%.12s", hex, hex + 8, hex + 12,
						 hex + 16, hex + 20);
	out->len = strlen(out->data);
	crypto_wipe(b, sizeof(b));
	crypto_wipe(hex, sizeof(hex));
}

/* A key pair. */
static void
generate_pair(const Generator *g, Generated *out)
{
	KeyPair		pair;

	if (g->kind == GENERATE_RSA)
		keypair_generate("RSA", g->bits, NULL, &pair);
	else if (g->kind == GENERATE_EC)
		keypair_generate("EC", 0, curves[g->curve], &pair);
	else
		keypair_generate("ED25519", 0, NULL, &pair);
	out->data = pair.private_key;
	out->len = pair.private_len;
	out->public_key = pair.public_key;
}

static void
generate_with_function(const Generator *g, const char *name, Oid owner,
					   Generated *out)
{
	Oid			function = find_function(g, owner);
	Datum		argument = CStringGetTextDatum(name);
	bool		isnull;
	Datum		result = user_function_call(function, &generator_function,
											owner, &argument,
											FUNCTION_TIMEOUT_MS, &isnull);
	struct varlena *value;

	if (isnull)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the generator %s(text) returned null",
						g->function)));
	if (get_func_rettype(function) == TEXTOID)
	{
		Plaintext text = plaintext_take(result);

		out->len = text.len;

		out->data = pnstrdup(text.data, text.len);
		plaintext_wipe(&text);
	}
	else
	{
		bytea	   *bytes = DatumGetByteaPP(result);

		out->len = VARSIZE_ANY_EXHDR(bytes);
		out->data = palloc(out->len + 1);
		memcpy(out->data, VARDATA_ANY(bytes), out->len);
		out->data[out->len] = '\0';
		if ((Pointer) bytes != DatumGetPointer(result))
			crypto_wipe(bytes, VARSIZE_ANY(bytes));
	}
	value = (struct varlena *) DatumGetPointer(result);
	crypto_wipe(VARDATA_ANY(value), VARATT_IS_EXTERNAL(value) ? 0 :
				VARSIZE_ANY_EXHDR(value));
	if (out->len < 1 || out->len > SECRET_VALUE_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the generator %s(text) returned %zu bytes, and a secret has 1 to %d",
						g->function, out->len, SECRET_VALUE_MAX)));
}

void
generator_run(const Generator *g, const char *name, Oid owner, Generated *out)
{
	memset(out, 0, sizeof(*out));
	switch ((GeneratorKind) g->kind)
	{
		case GENERATE_FUNCTION:
			generate_with_function(g, name, owner, out);
			break;
		case GENERATE_PASSWORD:
			generate_password(g, out);
			break;
		case GENERATE_HEX:
			generate_hex(g, out);
			break;
		case GENERATE_UUID:
			generate_uuid(out);
			break;
		case GENERATE_RSA:
		case GENERATE_EC:
		case GENERATE_ED25519:
			generate_pair(g, out);
			break;
	}
}
