/*
 * signature.c
 *		Sign what is sent, verify what is received.
 *
 * The dispatcher signs each delivery in up to two forms. Its keys are HMAC
 * contexts prepared when the secret was resolved; a signature then hashes the
 * parts where they lie and writes text into the caller's buffer.
 *
 * mlint.webhook_verify is for receivers in the database. It answers false for
 * whatever is not a valid signature, and never null, because "IF NOT null"
 * would let a forgery pass. When there is a standard signature it decides: a
 * hub signature, which has no time in it and may be replayed for ever, cannot
 * rescue a standard one that is wrong or old. Someone in between could still
 * take the standard headers away; a receiver whose sender always sends them
 * asks for 'standard' and is safe from that.
 *
 * An id with a full stop in it is neither signed nor accepted: the signed
 * content would read the same with another id, time and body.
 */
#include "postgres.h"

#include <math.h>

#include "common/compat.h"
#include "common/crypto.h"
#include "common/errors.h"
#include "common/peertext.h"
#include "common/plaintext.h"
#include "delivery/signature.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#define STANDARD_PREFIX		"v1,"
#define HUB_PREFIX			"sha256="
#define SECRET_PREFIX		"whsec_"

#define HEADER_ID			"webhook-id"
#define HEADER_TIMESTAMP	"webhook-timestamp"
#define HEADER_SIGNATURE	"webhook-signature"
#define HEADER_HUB			"X-Webhook-Signature"

#define ID_MAX				255
#define UNIX_EPOCH_SECONDS	\
	((POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * (int64) SECS_PER_DAY)

struct SigningKey
{
	HmacKey    *standard;
	HmacKey    *hub;			/* the same object when the bytes are the same */
};

PG_FUNCTION_INFO_V1(mlint_webhook_sign);
PG_FUNCTION_INFO_V1(mlint_webhook_verify);

/* The key of a "whsec_" secret: the bytes that its base64 stands for. */
static HmacKey *
standard_key_create(const char *base64, size_t len)
{
	uint8	   *bytes = palloc(3 * len / 4 + 1);
	int			n = crypto_unbase64(base64, len, bytes);
	HmacKey    *key = n > 0 ? hmac_key_create(bytes, n) : NULL;

	crypto_wipe(bytes, 3 * len / 4 + 1);
	pfree(bytes);
	if (key == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("invalid signing secret"),
				 errdetail("A secret that begins with \"%s\" goes on with base64, padding included.",
						   SECRET_PREFIX),
				 errhint("Make one with \"openssl rand -base64 32\" and put \"%s\" in front; or use any text that does not begin so.",
						 SECRET_PREFIX),
				 errhidestmt(true)));
	return key;
}

SigningKey *
signing_key_create(const char *secret, size_t len)
{
	size_t		prefix = strlen(SECRET_PREFIX);
	SigningKey *key;

	if (len == 0)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("a signing secret must not be empty"),
				 errhidestmt(true)));

	key = calloc(1, sizeof(SigningKey));
	if (key == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory")));
	PG_TRY();
	{
		key->hub = hmac_key_create(secret, len);
		if (len >= prefix && memcmp(secret, SECRET_PREFIX, prefix) == 0)
			key->standard = standard_key_create(secret + prefix, len - prefix);
		else
			key->standard = key->hub;
	}
	PG_CATCH();
	{
		signing_key_free(key);
		PG_RE_THROW();
	}
	PG_END_TRY();
	return key;
}

void
signing_key_free(SigningKey *key)
{
	if (key == NULL)
		return;
	if (key->standard != key->hub)
		hmac_key_free(key->standard);
	hmac_key_free(key->hub);
	free(key);
}

bool
signature_standard(SigningKey *const *keys, int n,
				   const char *id, size_t id_len, int64 timestamp,
				   const void *body, size_t body_len, char *out)
{
	char		between[MAXINT8LEN + 3];
	HmacPart	parts[3];
	uint8		mac[CRYPTO_SHA256_BYTES];

	between[0] = '.';
	parts[1].len = 1 + pg_lltoa(timestamp, between + 1);
	between[parts[1].len++] = '.';
	parts[1].data = between;
	parts[0].data = id;
	parts[0].len = id_len;
	parts[2].data = body;
	parts[2].len = body_len;

	for (int i = 0; i < n; i++)
	{
		if (!hmac_sign(keys[i]->standard, parts, 3, mac))
			return false;
		if (i > 0)
			*out++ = ' ';
		memcpy(out, STANDARD_PREFIX, strlen(STANDARD_PREFIX));
		crypto_base64(mac, sizeof(mac), out + strlen(STANDARD_PREFIX));
		out += SIGNATURE_STANDARD_BYTES - 1;
	}
	return true;
}

bool
signature_hub(SigningKey *key, const void *body, size_t body_len, char *out)
{
	HmacPart	part = {body, body_len};
	uint8		mac[CRYPTO_SHA256_BYTES];

	if (!hmac_sign(key->hub, &part, 1, mac))
		return false;
	memcpy(out, HUB_PREFIX, strlen(HUB_PREFIX));
	crypto_hex(mac, sizeof(mac), out + strlen(HUB_PREFIX));
	return true;
}

typedef enum SignatureForm
{
	FORM_STANDARD = 1,
	FORM_HUB = 2,
	FORM_BOTH = FORM_STANDARD | FORM_HUB
} SignatureForm;

/* The last argument of both SQL functions. */
static SignatureForm
signature_form(text *argument)
{
	char	   *form = text_to_cstring(argument);

	if (strcmp(form, "both") == 0)
		return FORM_BOTH;
	if (strcmp(form, "standard") == 0)
		return FORM_STANDARD;
	if (strcmp(form, "hub") == 0)
		return FORM_HUB;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("there is no signature \"%s\"", form),
			 errhint("Signatures are standard, hub and both."),
			 errhidestmt(true)));
}

/* May this be the id of a webhook: visible ASCII, and no full stop? */
static bool
webhook_id_valid(const char *id, size_t len)
{
	if (len < 1 || len > ID_MAX)
		return false;
	for (size_t i = 0; i < len; i++)
	{
		if (id[i] <= ' ' || id[i] >= 0x7f || id[i] == '.')
			return false;
	}
	return true;
}

/* Raise that OpenSSL could not compute a signature. */
static void
pg_attribute_noreturn()
signing_failed(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_INTERNAL_ERROR),
			 errmsg("OpenSSL could not sign")));
}

/* Add "name": "value" to an object that is being built. */
static void
header_push(JsonbParseState **state, const char *name, const char *value)
{
	JsonbValue	v = {.type = jbvString};

	v.val.string.val = unconstify(char *, name);
	v.val.string.len = strlen(name);
	pushJsonbValue(state, WJB_KEY, &v);
	v.val.string.val = unconstify(char *, value);
	v.val.string.len = strlen(value);
	pushJsonbValue(state, WJB_VALUE, &v);
}

/* The headers of one message, as a JSON object. */
static Jsonb *
webhook_headers(SigningKey *key, SignatureForm form, const char *id,
				int64 timestamp, const Plaintext *body)
{
	JsonbParseState *state = NULL;
	char		seconds[MAXINT8LEN + 1];
	char		standard[SIGNATURE_STANDARD_BYTES];
	char		hub[SIGNATURE_HUB_BYTES];

	if (!signature_standard(&key, 1, id, strlen(id), timestamp,
							body->data, body->len, standard) ||
		!signature_hub(key, body->data, body->len, hub))
		signing_failed();

	pg_lltoa(timestamp, seconds);
	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	if (form & FORM_STANDARD)
	{
		header_push(&state, HEADER_ID, id);
		header_push(&state, HEADER_TIMESTAMP, seconds);
		header_push(&state, HEADER_SIGNATURE, standard);
	}
	if (form & FORM_HUB)
		header_push(&state, HEADER_HUB, hub);
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
}

/*
 * mlint.webhook_sign(payload text, secret text, id text, at timestamptz,
 * signature text) returns jsonb
 */
Datum
mlint_webhook_sign(PG_FUNCTION_ARGS)
{
	char	   *id = text_to_cstring(PG_GETARG_TEXT_PP(2));
	TimestampTz at = PG_GETARG_TIMESTAMPTZ(3);
	SignatureForm form = signature_form(PG_GETARG_TEXT_PP(4));
	int64		timestamp;
	Plaintext	body;
	Plaintext	secret;
	SigningKey *volatile key = NULL;
	Jsonb	   *headers = NULL;

	hide_plan();
	if (!webhook_id_valid(id, strlen(id)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid id of a webhook"),
				 errdetail("An id is 1 to %d visible ASCII characters, without a full stop.",
						   ID_MAX),
				 errhidestmt(true)));
	if (TIMESTAMP_NOT_FINITE(at) || at < -UNIX_EPOCH_SECONDS * USECS_PER_SEC)
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("the time of a webhook must be finite and not before 1970"),
				 errhidestmt(true)));
	timestamp = (at + UNIX_EPOCH_SECONDS * USECS_PER_SEC) / USECS_PER_SEC;

	body = plaintext_take(PG_GETARG_DATUM(0));
	secret = plaintext_take(PG_GETARG_DATUM(1));
	PG_TRY();
	{
		key = signing_key_create(secret.data, secret.len);
		headers = webhook_headers(key, form, id, timestamp, &body);
	}
	PG_FINALLY();
	{
		signing_key_free(key);
		plaintext_wipe(&secret);
		plaintext_wipe(&body);
	}
	PG_END_TRY();
	PG_RETURN_JSONB_P(headers);
}

/* The headers that a signature is made of, as they were received. */
typedef struct ReceivedHeaders
{
	JsonbValue	id;				/* jbvNull: not there */
	JsonbValue	timestamp;
	JsonbValue	signature;
	JsonbValue	hub;
} ReceivedHeaders;

/* Pick them, whatever their case. False: not an object of such headers. */
static bool
received_headers(Jsonb *headers, ReceivedHeaders *found)
{
	struct
	{
		const char *name;
		JsonbValue *value;
	}			wanted[] = {
		{HEADER_ID, &found->id},
		{HEADER_TIMESTAMP, &found->timestamp},
		{HEADER_SIGNATURE, &found->signature},
		{HEADER_HUB, &found->hub},
	};
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue	v;
	JsonbValue *target = NULL;

	for (int i = 0; i < lengthof(wanted); i++)
		wanted[i].value->type = jbvNull;
	if (!JB_ROOT_IS_OBJECT(headers))
		return false;

	it = JsonbIteratorInit(&headers->root);
	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
		{
			target = NULL;
			for (int i = 0; i < lengthof(wanted); i++)
			{
				if (v.val.string.len == strlen(wanted[i].name) &&
					pg_strncasecmp(v.val.string.val, wanted[i].name,
								   v.val.string.len) == 0)
					target = wanted[i].value;
			}
		}
		else if (token == WJB_VALUE && target)
		{
			if (v.type != jbvString || target->type != jbvNull)
				return false;
			*target = v;
		}
	}
	return true;
}

/* Is the header's timestamp a number of seconds within tolerance of now? */
static bool
timestamp_acceptable(const JsonbValue *value, double tolerance_us,
					 int64 *timestamp)
{
	int64		age;

	/* Twelve digits last for 30,000 years and do not overflow. */
	if (value->val.string.len < 1 || value->val.string.len > 12)
		return false;
	*timestamp = 0;
	for (int i = 0; i < value->val.string.len; i++)
	{
		char		c = value->val.string.val[i];

		if (c < '0' || c > '9')
			return false;
		*timestamp = *timestamp * 10 + (c - '0');
	}
	age = GetCurrentTimestamp() -
		(*timestamp - UNIX_EPOCH_SECONDS) * USECS_PER_SEC;
	return fabs((double) age) <= tolerance_us;
}

/* Is one of the signatures in the header this one? All are looked at. */
static bool
signature_among(const JsonbValue *header, const char *expected, size_t len)
{
	const char *p = header->val.string.val;
	const char *end = p + header->val.string.len;
	bool		found = false;

	while (p < end)
	{
		const char *stop = memchr(p, ' ', end - p);

		if (stop == NULL)
			stop = end;
		if (stop - p == len && crypto_equal(p, expected, len))
			found = true;
		p = stop + 1;
	}
	return found;
}

/* Is it the standard signature that counts, or the hub's? */
static bool
standard_decides(SignatureForm form, const ReceivedHeaders *headers)
{
	if (form == FORM_BOTH)
		return headers->id.type != jbvNull ||
			headers->timestamp.type != jbvNull ||
			headers->signature.type != jbvNull;
	return form == FORM_STANDARD;
}

/* Does the standard signature hold? */
static bool
standard_holds(SigningKey *key, const ReceivedHeaders *headers,
			   const Plaintext *body, double tolerance_us)
{
	char		expected[SIGNATURE_STANDARD_BYTES];
	int64		timestamp;
	char		canonical[MAXINT8LEN + 1];

	if (headers->id.type != jbvString ||
		headers->timestamp.type != jbvString ||
		headers->signature.type != jbvString ||
		!webhook_id_valid(headers->id.val.string.val,
						  headers->id.val.string.len) ||
		!timestamp_acceptable(&headers->timestamp, tolerance_us, &timestamp))
		return false;

	/* What was signed is the text of the header, so it must be ours. */
	if (pg_lltoa(timestamp, canonical) != headers->timestamp.val.string.len)
		return false;
	if (!signature_standard(&key, 1, headers->id.val.string.val,
							headers->id.val.string.len, timestamp,
							body->data, body->len, expected))
		signing_failed();
	return signature_among(&headers->signature, expected,
						   SIGNATURE_STANDARD_BYTES - 1);
}

/* Does the hub signature hold? */
static bool
hub_holds(SigningKey *key, const ReceivedHeaders *headers,
		  const Plaintext *body)
{
	char		expected[SIGNATURE_HUB_BYTES];

	if (headers->hub.type != jbvString)
		return false;
	if (!signature_hub(key, body->data, body->len, expected))
		signing_failed();
	return headers->hub.val.string.len == SIGNATURE_HUB_BYTES - 1 &&
		crypto_equal(headers->hub.val.string.val, expected,
					 SIGNATURE_HUB_BYTES - 1);
}

/*
 * mlint.webhook_verify(payload text, headers jsonb, secret text, tolerance
 * interval, signature text) returns boolean
 */
Datum
mlint_webhook_verify(PG_FUNCTION_ARGS)
{
	ReceivedHeaders headers;
	SignatureForm form;
	Interval   *tolerance;
	double		tolerance_us;
	Plaintext	body;
	Plaintext	secret;
	SigningKey *volatile key = NULL;
	volatile bool holds = false;

	hide_plan();
	for (int i = 0; i < 5; i++)
	{
		if (PG_ARGISNULL(i))
			PG_RETURN_BOOL(false);
	}

	form = signature_form(PG_GETARG_TEXT_PP(4));
	tolerance = PG_GETARG_INTERVAL_P(3);
	tolerance_us = (double) tolerance->time +
		((double) tolerance->day + (double) tolerance->month * DAYS_PER_MONTH) *
		USECS_PER_DAY;
	if (tolerance_us < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the tolerance must not be negative"),
				 errhidestmt(true)));

	body = plaintext_take(PG_GETARG_DATUM(0));
	secret = plaintext_take(PG_GETARG_DATUM(2));
	PG_TRY();
	{
		key = signing_key_create(secret.data, secret.len);
		holds = received_headers(PG_GETARG_JSONB_P(1), &headers) &&
			(standard_decides(form, &headers) ?
			 standard_holds(key, &headers, &body, tolerance_us) :
			 hub_holds(key, &headers, &body));
	}
	PG_FINALLY();
	{
		signing_key_free(key);
		plaintext_wipe(&secret);
		plaintext_wipe(&body);
	}
	PG_END_TRY();
	PG_RETURN_BOOL(holds);
}
