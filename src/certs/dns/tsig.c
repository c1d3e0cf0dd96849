/*
 * tsig.c
 *		Transaction signatures of DNS messages; see tsig.h.
 *
 * A signature is a record at the message's end: the key's name, the algorithm,
 * the time, and an HMAC over the message as it was before, these, and, in an
 * answer, the HMAC of the question. We do it ourselves and not with ldns, which
 * copies keys without wiping them, and takes an answer's word for the algorithm
 * and for the time.
 *
 * An answer that says that our key or signature is not known cannot be signed,
 * and is believed as far as that: nothing was done.
 */
#include "postgres.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <time.h>

#include "certs/dns/tsig.h"
#include "common/crypto.h"

#define TYPE_TSIG		250
#define CLASS_ANY		255
#define HEADER_SIZE		12
/* How far clocks may differ, in seconds. */
#define FUDGE			300
#define NAME_BYTES_MAX	255

#define ERROR_BADSIG	16
#define ERROR_BADKEY	17
#define ERROR_BADTIME	18

const char *const tsig_algorithms[] = {"hmac-sha256", "hmac-sha384",
"hmac-sha512", "hmac-sha1", NULL};

/* What a signature's record says, and where in the message it begins. */
typedef struct Signature
{
	size_t		begin;
	uint8		name[NAME_BYTES_MAX];	/* in lower case */
	size_t		name_len;
	uint8		algorithm[NAME_BYTES_MAX];
	size_t		algorithm_len;
	uint64		time;
	uint16		fudge;
	const uint8 *mac;
	size_t		mac_len;
	uint16		original_id;
	uint16		error;
	const uint8 *other;
	size_t		other_len;
} Signature;

/* ---- bytes ---- */

static size_t
put16(uint8 *out, uint16 value)
{
	out[0] = value >> 8;
	out[1] = value & 0xff;
	return 2;
}

static size_t
put48(uint8 *out, uint64 value)
{
	for (int i = 0; i < 6; i++)
		out[i] = (value >> (40 - 8 * i)) & 0xff;
	return 6;
}

static uint16
get16(const uint8 *at)
{
	return (uint16) at[0] << 8 | at[1];
}

/* A name from text, in lower case; checked by who configured it. */
static size_t
put_name(uint8 *out, const char *name)
{
	size_t		n = 0;

	while (*name && n < NAME_BYTES_MAX - 1)
	{
		size_t		label = Min(strcspn(name, "."), 63);

		label = Min(label, NAME_BYTES_MAX - 2 - n);
		if (label == 0)
			break;
		out[n++] = (uint8) label;
		for (size_t i = 0; i < label; i++)
			out[n++] = pg_ascii_tolower((unsigned char) name[i]);
		name += label;
		if (*name == '.')
			name++;
	}
	out[n++] = 0;
	return n;
}

/*
 * Read a name at *at, which moves behind it; out (or NULL) has room for
 * NAME_BYTES_MAX. 0: it is none. Pointers only lead back, so this ends.
 */
static size_t
take_name(const uint8 *message, size_t len, size_t *at, uint8 *out)
{
	size_t		here = *at;
	size_t		limit = *at;
	size_t		n = 0;
	bool		jumped = false;

	for (;;)
	{
		uint8		label;

		if (here >= len)
			return 0;
		label = message[here];
		if ((label & 0xc0) == 0xc0)
		{
			size_t		target;

			if (here + 1 >= len)
				return 0;
			target = get16(message + here) & 0x3fff;
			if (!jumped)
				*at = here + 2;
			if (target >= limit)
				return 0;
			jumped = true;
			here = limit = target;
			continue;
		}
		if ((label & 0xc0) != 0 || here + 1 + label > len ||
			n + 1 + label > NAME_BYTES_MAX)
			return 0;
		if (out)
		{
			out[n] = label;
			for (int i = 1; i <= label; i++)
				out[n + i] = pg_ascii_tolower(message[here + i]);
		}
		n += 1 + label;
		here += 1 + label;
		if (label == 0)
		{
			if (!jumped)
				*at = here;
			return n;
		}
	}
}

/* ---- HMAC ---- */

static const EVP_MD *
digest_of(TsigAlgorithm algorithm)
{
	switch (algorithm)
	{
		case TSIG_SHA256:
			break;
		case TSIG_SHA384:
			return EVP_sha384();
		case TSIG_SHA512:
			return EVP_sha512();
		case TSIG_SHA1:
			return EVP_sha1();
	}
	return EVP_sha256();
}

static size_t
hmac(const TsigKey *key, const uint8 *data, size_t len, uint8 *mac)
{
	unsigned int n = 0;

	if (HMAC(digest_of(key->algorithm), key->secret, (int) key->len, data, len,
			 mac, &n) == NULL)
		elog(ERROR, "OpenSSL failed to sign a DNS message");
	return n;
}

/* The fields of a signature that are signed themselves (4.3.3). */
static size_t
put_variables(uint8 *out, const uint8 *name, size_t name_len,
			  const uint8 *algorithm, size_t algorithm_len, uint64 time,
			  uint16 fudge, uint16 error, const uint8 *other, size_t other_len)
{
	size_t		n = name_len;

	memcpy(out, name, name_len);
	n += put16(out + n, CLASS_ANY);
	memset(out + n, 0, 4);		/* TTL */
	n += 4;
	memcpy(out + n, algorithm, algorithm_len);
	n += algorithm_len;
	n += put48(out + n, time);
	n += put16(out + n, fudge);
	n += put16(out + n, error);
	n += put16(out + n, (uint16) other_len);
	if (other_len > 0)
		memcpy(out + n, other, other_len);
	return n + other_len;
}

size_t
tsig_sign(const TsigKey *key, uint8 *message, size_t len, uint8 *mac,
		  size_t *mac_len)
{
	uint8		name[NAME_BYTES_MAX];
	uint8		algorithm[NAME_BYTES_MAX];
	size_t		name_len = put_name(name, key->name);
	size_t		algorithm_len = put_name(algorithm,
										 tsig_algorithms[key->algorithm]);
	uint64		now = (uint64) time(NULL);
	uint8	   *data = palloc(len + TSIG_ROOM);
	uint8	   *at = message + len;
	size_t		n;

	memcpy(data, message, len);
	n = len + put_variables(data + len, name, name_len, algorithm,
							algorithm_len, now, FUDGE, 0, NULL, 0);
	*mac_len = hmac(key, data, n, mac);
	pfree(data);

	memcpy(at, name, name_len);
	at += name_len;
	at += put16(at, TYPE_TSIG);
	at += put16(at, CLASS_ANY);
	memset(at, 0, 4);
	at += 4;
	at += put16(at, (uint16) (algorithm_len + 16 + *mac_len));
	memcpy(at, algorithm, algorithm_len);
	at += algorithm_len;
	at += put48(at, now);
	at += put16(at, FUDGE);
	at += put16(at, (uint16) *mac_len);
	memcpy(at, mac, *mac_len);
	at += *mac_len;
	at += put16(at, get16(message));	/* our id */
	at += put16(at, 0);
	at += put16(at, 0);
	(void) put16(message + 10, get16(message + 10) + 1);
	return at - message;
}

/* ---- verification ---- */

/* Read the data of a signature's record, from at to end. */
static bool
take_data(const uint8 *message, size_t at, size_t end, Signature *s)
{
	s->algorithm_len = take_name(message, end, &at, s->algorithm);
	if (s->algorithm_len == 0 || end - at < 10)
		return false;
	s->time = 0;
	for (int i = 0; i < 6; i++)
		s->time = s->time << 8 | message[at + i];
	s->fudge = get16(message + at + 6);
	s->mac_len = get16(message + at + 8);
	at += 10;
	if (end - at < s->mac_len + 6)
		return false;
	s->mac = message + at;
	at += s->mac_len;
	s->original_id = get16(message + at);
	s->error = get16(message + at + 2);
	s->other_len = get16(message + at + 4);
	at += 6;
	s->other = message + at;
	return end - at == s->other_len;
}

/* Find the signature, the message's last record. False: there is none. */
static bool
find_signature(const uint8 *message, size_t len, Signature *s)
{
	size_t		at = HEADER_SIZE;
	int			questions;
	int			records = 0;

	if (len < HEADER_SIZE)
		return false;
	questions = get16(message + 4);
	for (int i = 6; i <= 10; i += 2)
		records += get16(message + i);
	if (get16(message + 10) == 0)
		return false;
	for (int i = 0; i < questions; i++)
	{
		if (take_name(message, len, &at, NULL) == 0 || len - at < 4)
			return false;
		at += 4;
	}
	for (int i = 0; i < records; i++)
	{
		size_t		begin = at;
		size_t		data;

		s->name_len = take_name(message, len, &at, s->name);
		if (s->name_len == 0 || len - at < 10)
			return false;
		data = get16(message + at + 8);
		if (len - at - 10 < data)
			return false;
		if (get16(message + at) == TYPE_TSIG)
		{
			s->begin = begin;
			return i == records - 1 &&
				take_data(message, at + 10, at + 10 + data, s);
		}
		at += 10 + data;
	}
	return false;
}

/* Is it by our key, in our algorithm? */
static bool
is_ours(const TsigKey *key, const Signature *s)
{
	uint8		name[NAME_BYTES_MAX];
	size_t		len = put_name(name, key->name);

	if (s->name_len != len || memcmp(s->name, name, len) != 0)
		return false;
	len = put_name(name, tsig_algorithms[key->algorithm]);
	return s->algorithm_len == len && memcmp(s->algorithm, name, len) == 0;
}

/* Is the HMAC what it must be? */
static bool
mac_matches(const TsigKey *key, const Signature *s, const uint8 *answer,
			const uint8 *mac, size_t mac_len)
{
	uint8	   *data = palloc(2 + mac_len + s->begin + TSIG_ROOM +
							  s->other_len);
	uint8		expected[TSIG_MAC_MAX];
	size_t		n = put16(data, (uint16) mac_len);
	uint8	   *message;

	memcpy(data + n, mac, mac_len);
	n += mac_len;
	message = data + n;
	memcpy(message, answer, s->begin);
	(void) put16(message, s->original_id);
	(void) put16(message + 10, get16(message + 10) - 1);
	n += s->begin;
	n += put_variables(data + n, s->name, s->name_len, s->algorithm,
					   s->algorithm_len, s->time, s->fudge, s->error,
					   s->other, s->other_len);
	n = hmac(key, data, n, expected);
	pfree(data);
	return s->mac_len == n && crypto_equal(expected, s->mac, n);
}

TsigVerdict
tsig_verify(const TsigKey *key, const uint8 *answer, size_t len,
			const uint8 *mac, size_t mac_len, const char **why)
{
	Signature	s;
	int64		apart;

	*why = "the answer is not signed";
	if (!find_signature(answer, len, &s))
		return TSIG_NONE;
	if (s.error == ERROR_BADKEY)
		*why = "it does not know the key, or not for this algorithm (BADKEY)";
	else if (s.error == ERROR_BADSIG)
		*why = "the key is another one there (BADSIG)";
	else if (s.error == ERROR_BADTIME)
		*why = "its clock and ours differ by more than five minutes (BADTIME)";
	else if (s.error != 0)
		*why = "it does not take our signature";
	if (s.error != 0)
		return TSIG_REJECTED;
	*why = "the answer is signed with another key or algorithm than ours";
	if (!is_ours(key, &s))
		return TSIG_BAD;
	*why = "the answer's signature is wrong";
	if (!mac_matches(key, &s, answer, mac, mac_len))
		return TSIG_BAD;
	apart = (int64) time(NULL) - (int64) s.time;
	*why = "the answer was signed at another time than now";
	if (apart > FUDGE || apart < -FUDGE)
		return TSIG_BAD;
	return TSIG_GOOD;
}
