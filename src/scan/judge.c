/*
 * judge.c
 *		Chance or hand: what tells a generated secret from written text.
 *
 * Entropy alone does not: "getUserAccessTokenById2" has 3.9 bits a character,
 * which is more than a hexadecimal key can have. Three cheap signs together
 * do. A generator's characters do not run in sequences, its letters do not
 * pair up as those of English words do, and it changes between upper case,
 * lower case and digits all the time.
 */
#include "postgres.h"

#include <math.h>

#include "scan/scan.h"

/* Stand-ins that people write, in lower case. */
static const char *const placeholders[] = {
	"example", "placeholder", "changeme", "change_me", "change-me",
	"changethis", "change_this", "change-this", "replace", "redacted",
	"insert", "xxxx", "****", "....", "----", "____", "your-", "your_",
	"yourpass", "yoursecret", "yourtoken", "yourkey", "yourapi", "mypassword",
	"my-secret", "my_secret", "mysecret", "my-token", "my_token", "dummy",
	"sample", "fake", "foobar", "todo", "fixme", "notreal", "not-a-real",
	"not_a_real", "invalid", "undefined", "deadbeef", "lorem", "secret-here",
	"key-here", "key_here", "token_here", "token-here", "goes-here",
	"goes_here", "${", "#{", "{{", "$(", "<%", "%(", "%{", "...", NULL
};

/* Whole values that are words for a password. */
static const char *const password_words[] = {
	"password", "passwd", "pass", "passw0rd", "pwd", "secret", "secretpassword",
	"user", "username", "admin", "token", "key", "none", "null", "nil", "true",
	"false", "test", "testing", "test123", "hidden", "private", "credentials",
	"changeit", "password123", "password1", "postgres", "root", "guest", "foo",
	"bar", "baz", "pw", "string", "default", "empty", "required", "optional",
	"env", "prompt", "mypass", "apikey", "api_key", "api-key", "p@ssw0rd",
	"user_password", "db_password", "dbpass", "dbpassword", "hunter2", NULL
};

/*
 * The most frequent pairs of letters in English text: about two thirds of all
 * pairs there, and one in seven of all possible ones.
 */
static const char frequent_pairs[] =
"th he in er an re nd at on nt ha es st en ed to it ou ea hi is or ti as te "
"et ng of al de se le sa si ar ve ra ld ur ro ri io ic ne me li co ll om ma "
"ce ca ta la el us il em ch ho di ec ee ot ni ei tr un wo ss ac lo ut ly sh "
"ns rs no wi ct ge pr ke ab pe po be mo ol ow ay ad ts ir em pa ey am id ag "
"so su ul op ap bl";

static uint8
lower(uint8 c)
{
	return c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c;
}

static bool
is_letter(uint8 c)
{
	return lower(c) >= 'a' && lower(c) <= 'z';
}

static bool
is_digit(uint8 c)
{
	return c >= '0' && c <= '9';
}

/* Shannon's, in bits a byte. */
float
entropy_of(const uint8 *data, size_t len)
{
	uint32		counts[256] = {0};
	double		sum = 0;

	if (len == 0)
		return 0;
	for (size_t i = 0; i < len; i++)
		counts[data[i]]++;
	for (int c = 0; c < 256; c++)
	{
		if (counts[c] > 0)
			sum += counts[c] * log2(counts[c]);
	}
	return (float) (log2(len) - sum / len);
}

bool
contains(const uint8 *data, size_t len, const char *needle)
{
	size_t		n = strlen(needle);

	for (size_t i = 0; i + n <= len; i++)
	{
		size_t		k = 0;

		while (k < n && lower(data[i + k]) == (uint8) needle[k])
			k++;
		if (k == n)
			return true;
	}
	return false;
}

static bool
equals(const uint8 *data, size_t len, const char *word)
{
	return strlen(word) == len && contains(data, len, word);
}

/* Are at least two fifths of the steps from byte to byte 0 or 1? */
bool
is_sequence(const uint8 *data, size_t len)
{
	size_t		steps = 0;

	for (size_t i = 1; i < len; i++)
	{
		int			step = data[i] - data[i - 1];

		if (step == 0 || step == 1 || step == -1)
			steps++;
	}
	return len > 3 && steps * 5 >= (len - 1) * 2;
}

bool
is_placeholder(const uint8 *data, size_t len)
{
	if (len == 0 || strchr("$<{%[", data[0]) != NULL || data[len - 1] == '>')
		return true;
	for (const char *const *p = placeholders; *p; p++)
	{
		if (contains(data, len, *p))
			return true;
	}
	for (const char *const *p = password_words; *p; p++)
	{
		if (equals(data, len, *p))
			return true;
	}
	return false;
}

/* The 26 x 26 bits of frequent_pairs. */
static bool
is_frequent_pair(uint8 a, uint8 b)
{
	static uint32 pairs[26];

	if (pairs['t' - 'a'] == 0)
	{
		for (const char *p = frequent_pairs; p[0] && p[1]; p += 3)
		{
			pairs[p[0] - 'a'] |= (uint32) 1 << (p[1] - 'a');
			if (p[2] == '\0')
				break;
		}
	}
	return (pairs[lower(a) - 'a'] >> (lower(b) - 'a')) & 1;
}

/* Do the letters pair up as in words? */
static bool
is_wordy(const uint8 *data, size_t len)
{
	int			pairs = 0;
	int			frequent = 0;

	for (size_t i = 1; i < len; i++)
	{
		/* A capital begins a word. */
		if (!is_letter(data[i - 1]) || !is_letter(data[i]) ||
			(data[i - 1] >= 'a' && data[i] <= 'Z'))
			continue;
		pairs++;
		frequent += is_frequent_pair(data[i - 1], data[i]);
	}
	return pairs >= 5 && frequent * 100 >= pairs * 44;
}

static int
character_class(uint8 c)
{
	return is_digit(c) ? 1 : c >= 'a' && c <= 'z' ? 2 :
		c >= 'A' && c <= 'Z' ? 3 : 0;
}

bool
is_uuid(const uint8 *data, size_t len)
{
	if (len != 36)
		return false;
	for (int i = 0; i < 36; i++)
	{
		bool		dash = i == 8 || i == 13 || i == 18 || i == 23;

		if (dash ? data[i] != '-' : !isxdigit(data[i]))
			return false;
	}
	return true;
}

bool
is_random(const uint8 *data, size_t len)
{
	int			digits = 0;
	int			letters = 0;
	int			uppers = 0;
	int			symbols = 0;
	int			hex = 0;
	int			changes = 0;
	int			last = 0;
	float		entropy = entropy_of(data, len);

	for (size_t i = 0; i < len; i++)
	{
		int			class = character_class(data[i]);

		digits += class == 1;
		uppers += class == 3;
		letters += class >= 2;
		symbols += class == 0;
		hex += isxdigit(data[i]) != 0;
		if (class != 0)
		{
			changes += last != 0 && class != last;
			last = class;
		}
	}
	if (letters < 2 || symbols * 4 > (int) len ||
		changes * 100 < (int) (len - symbols) * 18 ||
		is_sequence(data, len) ||
		(hex < (int) len && is_wordy(data, len)))
		return false;
	if (digits == 0)
		return uppers > 0 && len >= 20 && entropy >= 3.9;
	return entropy >= (hex == (int) len ? 2.9 : len < 20 ? 3.2 : 3.5);
}

/*
 * Three of four kinds of characters, and no word for a password in it. What
 * is code, or a pattern that passwords must match, has other signs.
 */
bool
is_strong_password(const uint8 *data, size_t len)
{
	int			kinds[4] = {0};

	if (len < 8 || len > 128)
		return false;
	for (size_t i = 0; i < len; i++)
	{
		if (data[i] <= ' ' || data[i] == '\\' || data[i] >= 0x7F)
			return false;
		kinds[character_class(data[i])] = 1;
	}
	return kinds[0] + kinds[1] + kinds[2] + kinds[3] >= 3 &&
		!contains(data, len, "(?") && !contains(data, len, "a-z") &&
		!contains(data, len, "://") && !contains(data, len, "()") &&
		!contains(data, len, "password") && !contains(data, len, "test") &&
		data[0] != '/' && data[0] != '.' && data[0] != '#' &&
		!is_sequence(data, len);
}
