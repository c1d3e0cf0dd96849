/*
 * match.c
 *		The matchers of rules that a pattern cannot express.
 *
 * Each gets a place where a keyword stands and looks at a bounded number of
 * bytes around it, so that the cost of a scan is bounded by the text's length
 * whatever the text. None goes back by more than SCAN_REACH (scan.c).
 */
#include "postgres.h"

#include "common/crypto.h"
#include "port/pg_crc32c.h"
#include "scan/scan.h"
#include "utils/pg_crc.h"

#define NAME_MAX_BYTES		64	/* of a name, to each side of the keyword */
#define VALUE_MAX_BYTES		1024
#define PEM_MAX_BYTES		16384

static uint8
at(const ScanSubject *s, size_t i)
{
	return i < s->len ? s->data[i] : '\0';
}

static uint8
lower(uint8 c)
{
	return c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c;
}

static bool
is_alnum(uint8 c)
{
	return (c >= '0' && c <= '9') || (lower(c) >= 'a' && lower(c) <= 'z');
}

static bool
is_name(uint8 c)
{
	return is_alnum(c) || c == '_' || c == '-' || c == '.';
}

static bool
is_blank(uint8 c)
{
	return c == ' ' || c == '\t';
}

static bool
is_quote(uint8 c)
{
	return c == '"' || c == '\'' || c == '`';
}

/* Does this word, in lower case, stand here, in any case? */
static bool
word_at(const ScanSubject *s, size_t i, const char *word)
{
	size_t		n = strlen(word);

	if (i + n > s->len)
		return false;
	for (size_t k = 0; k < n; k++)
	{
		if (lower(s->data[i + k]) != (uint8) word[k])
			return false;
	}
	return true;
}

static size_t
skip_blanks(const ScanSubject *s, size_t i)
{
	size_t		end = i + 24;

	while (i < end && is_blank(at(s, i)))
		i++;
	return i;
}

static bool
match_set(ScanMatch *m, const ScanSubject *s, size_t start, size_t end)
{
	m->start = start;
	m->end = end;
	m->shown = 0;
	m->entropy = entropy_of(s->data + start, end - start);
	return end > start;
}

/* The quote here, with a backslash or doubled as inside another literal. */
static int
quote_at(const ScanSubject *s, size_t i)
{
	if (at(s, i) == '\\' && is_quote(at(s, i + 1)))
		return 2;
	if (at(s, i) == '\'' && at(s, i + 1) == '\'' && at(s, i + 2) != '\'' &&
		at(s, i + 2) > ' ' && strchr(",;)", at(s, i + 2)) == NULL)
		return 2;
	return is_quote(at(s, i)) ? 1 : 0;
}

/* From a quote on, to the one that closes it, on the same line. */
static bool
quoted_value(const ScanSubject *s, size_t i, size_t *start, size_t *end)
{
	int			n = quote_at(s, i);
	size_t		limit;
	uint8		quote;

	if (n == 0)
		return false;
	quote = at(s, i + n - 1);
	*start = i + n;
	limit = Min(s->len, *start + VALUE_MAX_BYTES);
	for (i = *start; i < limit && s->data[i] != '\n'; i++)
	{
		if (n == 1 && s->data[i] == '\\')
		{
			i++;
			continue;
		}
		if (s->data[i] == quote || (n == 2 && s->data[i] == '\\' &&
									at(s, i + 1) == quote))
		{
			*end = i;
			return true;
		}
	}
	return false;
}

/* A bare word: to the first blank or delimiter. Code is not a value. */
static bool
bare_value(const ScanSubject *s, size_t i, size_t *start, size_t *end)
{
	size_t		limit = Min(s->len, i + VALUE_MAX_BYTES);

	*start = i;
	while (i < limit && s->data[i] > ' ' && s->data[i] < 0x7F &&
		   strchr(",;\"'`)}]<>&|([{$\\", s->data[i]) == NULL)
		i++;
	*end = i;
	return i > *start && i < *start + VALUE_MAX_BYTES &&
		(i == s->len || strchr("([{$", s->data[i]) == NULL);
}

/* "b" of b"...": prefixes of string literals. */
static size_t
skip_literal_prefix(const ScanSubject *s, size_t i)
{
	if (at(s, i) != '\0' && strchr("bBrRuUfFLEN@", at(s, i)) != NULL &&
		is_quote(at(s, i + 1)))
		return i + 1;
	return i;
}

/*
 * What stands between a name that ends at i and its value: the place of the
 * value, or 0. A value that follows "(" or "," or a blank must be quoted,
 * unless the name is an option of a command.
 */
static size_t
after_operator(const ScanSubject *s, size_t i, bool option, bool *must_quote)
{
	size_t		name_end = i;
	bool		closed = false;

	*must_quote = false;
	for (int n = 0; n < 3; n++)
	{
		if (at(s, i) == '\\' && is_quote(at(s, i + 1)))
			i++;
		if (!is_quote(at(s, i)) && at(s, i) != ']')
			break;
		closed = true;
		i++;
	}
	i = skip_blanks(s, i);
	switch (at(s, i))
	{
		case ':':
			i++;
			if (at(s, i) == ':')
				return 0;		/* a::b */
			if (at(s, i) == '=')
				return i + 1;
			/* A type in between: "name: &str = value". */
			{
				size_t		type = skip_blanks(s, i);
				size_t		limit = type + 32;

				while (type < limit && (is_name(at(s, type)) ||
										(at(s, type) != '\0' &&
										 strchr("<>&[]?|", at(s, type)))))
					type++;
				type = skip_blanks(s, type);
				if (type < limit && at(s, type) == '=' &&
					at(s, type + 1) != '=')
					return type + 1;
			}
			return i;
		case '=':
		case '!':
			if (at(s, i) == '!' && at(s, i + 1) != '=')
				return 0;
			while (at(s, i) == '=' || at(s, i) == '>' || at(s, i) == '!')
				i++;
			return i;
		case '-':
			return at(s, i + 1) == '>' ? i + 2 : 0;
		case '|':
		case '?':
			*must_quote = true;
			return at(s, i + 1) == at(s, i) ? i + 2 :
				at(s, i + 1) == '=' ? i + 2 : 0;
		case ',':
			*must_quote = true;
			return closed ? i + 1 : 0;
		case '(':
			*must_quote = true;
			return i == name_end ? i + 1 : 0;
		default:
			/* "name text := value", "name string = value" */
			if (i > name_end && !closed)
			{
				size_t		type = i;

				while (type < i + 32 && is_name(at(s, type)))
					type++;
				if (type > i)
					type = skip_blanks(s, type);
				if (type > i && at(s, type) == ':' && at(s, type + 1) == '=')
					return type + 2;
				if (type > i && at(s, type) == '=' && at(s, type + 1) != '=')
				{
					*must_quote = true;
					return type + 1;
				}
			}
			/* <add key="name" value="..."/> */
			if (closed && word_at(s, i, "value="))
			{
				*must_quote = true;
				return i + 6;
			}
			if (i == name_end)
				return 0;
			*must_quote = !option;
			if (word_at(s, i, "to ") || word_at(s, i, "is "))
				return i + 3;
			return i;
	}
}

bool
assignment_around(const ScanSubject *s, const ScanHit *hit, Assignment *a)
{
	size_t		low = hit->start > NAME_MAX_BYTES ?
	hit->start - NAME_MAX_BYTES : 0;
	size_t		high = hit->end + NAME_MAX_BYTES;
	size_t		value;
	bool		must_quote;

	a->name_start = hit->start;
	while (a->name_start > low && is_name(s->data[a->name_start - 1]))
		a->name_start--;
	a->name_end = hit->end;
	while (a->name_end < high && is_name(at(s, a->name_end)) &&
		   at(s, a->name_end) != '.')
		a->name_end++;
	if (at(s, a->name_end) == '-' || a->name_end == high)
		return false;
	/* A pointer's name: "token->next". */
	if (a->name_end > hit->end && s->data[a->name_end - 1] == '-')
		return false;

	/* <name>value</name> */
	if (at(s, a->name_end) == '>' && a->name_start > 0 &&
		s->data[a->name_start - 1] == '<')
	{
		const uint8 *end;

		a->quoted = true;
		a->start = a->name_end + 1;
		end = memchr(s->data + a->start, '<',
					 Min(s->len - a->start, VALUE_MAX_BYTES));
		a->end = end ? end - s->data : a->start;
		return end != NULL;
	}

	value = after_operator(s, a->name_end,
						   s->data[a->name_start] == '-', &must_quote);
	if (value == 0)
		return false;
	value = skip_literal_prefix(s, skip_blanks(s, value));
	if (quote_at(s, value) > 0)
		a->quoted = true;
	else if (must_quote)
		return false;
	else
		a->quoted = false;
	return a->quoted ? quoted_value(s, value, &a->start, &a->end) :
		bare_value(s, value, &a->start, &a->end);
}

/*
 * Words in a name that say that its value is no secret: what stands for the
 * secret, describes it, or is public. Between blanks.
 */
static const char innocent_words[] =
" hash hashed sha sha1 sha256 sha512 md5 digest checksum sum integrity "
"fingerprint thumbprint public pub publishable csrf xsrf authenticity nonce id "
"ids name names file filename path directory dir folder url uri endpoint type "
"kind field column "
"length len size count ttl expiry expires expiration policy reset regex "
"pattern label hint error message msg prefix suffix header arn ref version "
"rev revision etag page next continuation cursor sync cache primary foreign "
"sort partition index example sample dummy fake mock placeholder title text "
"description help format algorithm algo alg method mode count max min limit "
"enabled required valid validator verifier encrypted sealed cipher ciphertext "
"masked redacted site verification stream position row object group "
"artifact upload resume sample tokenizer tokenize tokenized tokens "
"design color style class selector icon invalid wrong bad incorrect "
"commit blob tree signature ";

static bool
is_innocent_word(const char *word, int len)
{
	char		padded[32];

	if (len == 0 || len > 24)
		return false;
	padded[0] = ' ';
	memcpy(padded + 1, word, len);
	padded[1 + len] = ' ';
	padded[2 + len] = '\0';
	return strstr(innocent_words, padded) != NULL;
}

/* Look at each word of a name, split at "_", "-", "." and capitals. */
static bool
is_innocent_name(const ScanSubject *s, const Assignment *a)
{
	char		word[32];
	int			len = 0;

	for (size_t i = a->name_start; i <= a->name_end; i++)
	{
		uint8		c = i < a->name_end ? s->data[i] : '_';
		bool		capital = c >= 'A' && c <= 'Z' && i > a->name_start &&
		s->data[i - 1] >= 'a' && s->data[i - 1] <= 'z';

		if (!is_alnum(c) || capital)
		{
			if (is_innocent_word(word, len))
				return true;
			len = 0;
		}
		if (is_alnum(c) && len < (int) sizeof(word) - 1)
			word[len++] = lower(c);
	}
	return false;
}

/* An option in a catalog: the value is all that follows, whatever it is. */
static bool
option_value(const ScanSubject *s, const ScanHit *hit, Assignment *a)
{
	const uint8 *equals = memchr(s->data, '=', Min(s->len, 256));

	if ((s->place & SCAN_OPTION) == 0 || equals == NULL)
		return false;
	a->name_start = 0;
	a->name_end = equals - s->data;
	a->start = a->name_end + 1;
	a->end = Min(s->len, a->start + VALUE_MAX_BYTES);
	a->quoted = true;
	return hit->end <= a->name_end;
}

bool
match_generic_secret(const ScanRule *rule, const ScanSubject *s,
					 const ScanHit *hit, ScanMatch *m)
{
	Assignment	a;
	size_t		len;

	if (option_value(s, hit, &a))
	{
		m->severity = SCAN_HIGH;
		return !is_innocent_name(s, &a) && match_set(m, s, a.start, a.end);
	}
	if ((s->place & SCAN_GENERATED) || !assignment_around(s, hit, &a))
		return false;
	len = a.end - a.start;
	if (len < 16 || len > 512 || is_innocent_name(s, &a) ||
		is_placeholder(s->data + a.start, len))
		return false;
	for (size_t i = a.start; i < a.end; i++)
	{
		if (!is_alnum(s->data[i]) &&
			strchr("+/=_.~-:!@#%^&*", s->data[i]) == NULL)
			return false;
	}
	if (contains(s->data + a.start, len, "://") || s->data[a.start] == '/' ||
		s->data[a.start] == '.' || s->data[a.start] == '#')
		return false;
	if (is_uuid(s->data + a.start, len))
	{
		const uint8 *name = s->data + a.name_start;
		size_t		name_len = a.name_end - a.name_start;

		if (!contains(name, name_len, "secret") &&
			!contains(name, name_len, "pass") &&
			!contains(name, name_len, "api"))
			return false;
	}
	else if (!is_random(s->data + a.start, len))
		return false;
	return match_set(m, s, a.start, a.end);
}

bool
match_generic_password(const ScanRule *rule, const ScanSubject *s,
					   const ScanHit *hit, ScanMatch *m)
{
	Assignment	a;
	bool		found;

	if ((s->place & (SCAN_GENERATED | SCAN_OPTION)) ||
		!assignment_around(s, hit, &a) || is_innocent_name(s, &a) ||
		!is_strong_password(s->data + a.start, a.end - a.start) ||
		is_placeholder(s->data + a.start, a.end - a.start))
		return false;
	found = a.quoted;

	/* Without quotes and digits, "object.MEMBER" is code. */
	for (size_t i = a.start; i < a.end && !found; i++)
		found = s->data[i] >= '0' && s->data[i] <= '9';
	return found && match_set(m, s, a.start, a.end);
}

/* White space between the parts of a key, as it is and as it is escaped. */
static size_t
skip_key_space(const ScanSubject *s, size_t i, size_t limit)
{
	while (i < limit)
	{
		uint8		c = s->data[i];

		if (c == '\\' && (at(s, i + 1) == 'n' || at(s, i + 1) == 'r' ||
						  at(s, i + 1) == '\\'))
			i += 2;
		else if (c <= ' ' || is_quote(c) || c == '+' || c == '\\' ||
				 c == '|' || c == ',')
			i++;
		else
			break;
	}
	return i;
}

/* "-----BEGIN ... PRIVATE KEY-----" with the body of a key after it. */
bool
match_private_key(const ScanRule *rule, const ScanSubject *s,
				  const ScanHit *hit, ScanMatch *m)
{
	size_t		limit = Min(s->len, hit->start + PEM_MAX_BYTES);
	size_t		i = hit->end;
	size_t		label = i;
	size_t		header_end;
	int			body = 0;

	while (i < limit && i < label + 64 && s->data[i] != '-' &&
		   s->data[i] >= ' ')
		i++;
	if (!word_at(s, i, "-----") ||
		!contains(s->data + label, i - label, "private key"))
		return false;
	header_end = i + 5;
	if (contains(s->data + label, i - label, " encrypted "))
		m->severity = SCAN_MEDIUM;

	/* Lines of headers, then 40 characters of base64 or more in a row. */
	i = skip_key_space(s, header_end, limit);
	while (i < limit && body < 40)
	{
		uint8		c = s->data[i];

		if (is_alnum(c) || c == '/' || c == '+' || c == '=')
			body++;
		else if (c == ':' || c == ',' || c == ' ' || c == '.' || c == '-' ||
				 c == '(' || c == ')')
		{
			if (word_at(s, i, "-----"))
				return false;
			if (c == ':' && contains(s->data + i, Min(24, limit - i),
									 "encrypted"))
				m->severity = SCAN_MEDIUM;
			body = 0;
		}
		else
		{
			size_t		next = skip_key_space(s, i, limit);

			if (next == i || i > header_end + 600)
				return false;
			i = next;
			continue;
		}
		i++;
	}
	if (body < 40 || is_sequence(s->data + i - 40, 40) ||
		contains(s->data + header_end, i - header_end, "xxxx") ||
		contains(s->data + header_end, i - header_end, "..."))
		return false;
	match_set(m, s, hit->start, limit);
	for (; i + 5 < limit; i++)
	{
		if (s->data[i] == '-' && word_at(s, i, "-----end"))
			break;
	}
	m->entropy = entropy_of(s->data + header_end, i - header_end);
	m->end = i;
	m->shown = header_end - hit->start;
	return true;
}

/* scheme://user:password@host */
bool
match_url(const ScanRule *rule, const ScanSubject *s, const ScanHit *hit,
		  ScanMatch *m)
{
	size_t		scheme = hit->start;
	size_t		user = hit->end;
	size_t		colon;
	size_t		password;
	size_t		sign = 0;
	size_t		limit;
	size_t		i;

	while (scheme > 0 && hit->start - scheme < 24 &&
		   (is_alnum(s->data[scheme - 1]) || s->data[scheme - 1] == '+' ||
			s->data[scheme - 1] == '-' || s->data[scheme - 1] == '.'))
		scheme--;
	if (hit->start - scheme < 2)
		return false;

	limit = Min(s->len, user + 128);
	for (i = user; i < limit; i++)
	{
		uint8		c = s->data[i];

		if (!is_alnum(c) && strchr("._%+-~@!", c) == NULL)
			break;
	}
	if (at(s, i) != ':')
		return false;
	colon = i;
	password = colon + 1;
	limit = Min(s->len, password + 256);
	for (i = password; i < limit; i++)
	{
		uint8		c = s->data[i];

		if (c <= ' ' || c == '"' || c == '\'' || c == '`' || c == '<' ||
			c == '>' || c == '\\' || c == '/' || c >= 0x7F)
			break;
		if (c == '@')
			sign = i;
		if (sign > 0 && (c == '?' || c == '#' || c == ',' || c == ';' ||
						 c == ')'))
			break;
	}
	if (sign < password + 3 || !(is_alnum(at(s, sign + 1)) ||
								 at(s, sign + 1) == '['))
		return false;
	if (is_placeholder(s->data + password, sign - password) ||
		at(s, password) == ':' || at(s, password) == '*' ||
		is_placeholder(s->data + hit->end, Max(colon, user + 1) - user) ||
		is_sequence(s->data + password, sign - password) ||
		contains(s->data + password, sign - password, "password") ||
		contains(s->data + password, sign - password, "}") ||
		contains(s->data + sign + 1, Min(64, s->len - sign - 1), "example."))
	{
		/* A name that means nothing does not make a password void. */
		if (colon > user ||
			is_placeholder(s->data + password, sign - password))
			return false;
	}
	/* The same word twice is a default of development. */
	if (sign - password == colon - user &&
		memcmp(s->data + user, s->data + password, colon - user) == 0)
		return false;
	return match_set(m, s, password, sign);
}

/* Is one of these words within so many bytes around, on the same line? */
static bool
beside(const ScanSubject *s, size_t from, size_t to, int reach,
	   const char *const *words)
{
	size_t		low = from;
	size_t		high = to;

	while (low > 0 && from - low < (size_t) reach &&
		   s->data[low - 1] != '\n')
		low--;
	while (high < s->len && high - to < (size_t) reach &&
		   s->data[high] != '\n')
		high++;
	for (; *words; words++)
	{
		if (contains(s->data + low, high - low, *words))
			return true;
	}
	return false;
}

/* password=... among the other words of a connection string. */
bool
match_dsn(const ScanRule *rule, const ScanSubject *s, const ScanHit *hit,
		  ScanMatch *m)
{
	static const char *const words[] = {
		"host=", "dbname=", "hostaddr=", "server=", "data source=",
		"jdbc:", "driver=", "user id=", "uid=", "initial catalog=", "service=",
		"user=", NULL
	};
	size_t		start = hit->end;
	size_t		end;
	size_t		limit = Min(s->len, start + 256);

	if (hit->start > 0 && is_name(s->data[hit->start - 1]))
		return false;
	if (quote_at(s, start) > 0)
	{
		if (!quoted_value(s, start, &start, &end))
			return false;
	}
	else
	{
		for (end = start; end < limit && s->data[end] > ' '; end++)
		{
			if (strchr(";&\"'`,<>){}\\", s->data[end]) != NULL)
				break;
		}
	}
	if (end < start + 3 || at(s, start) == '=' || at(s, end) == '(' ||
		at(s, end) == '{' || at(s, start) == '\'' ||
		is_placeholder(s->data + start, end - start) ||
		is_sequence(s->data + start, end - start) ||
		contains(s->data + start, end - start, "(") ||
		contains(s->data + start, end - start, "[") ||
		contains(s->data + start, end - start, "password") ||
		!beside(s, hit->start, end, 200, words))
		return false;
	return match_set(m, s, start, end);
}

/* A value after blanks, in quotes, that no one made up as a stand-in. */
static bool
literal_after(const ScanSubject *s, size_t i, ScanMatch *m)
{
	size_t		start;
	size_t		end;

	i = skip_literal_prefix(s, skip_blanks(s, i));
	if (at(s, i) == '"' || !quoted_value(s, i, &start, &end) ||
		end < start + 3 ||
		is_placeholder(s->data + start, end - start) ||
		word_at(s, start, "scram-sha-256$") ||
		memchr(s->data + start, ' ', end - start) != NULL ||
		contains(s->data + start, end - start, "||"))
		return false;
	return match_set(m, s, start, end);
}

/* CREATE ROLE x PASSWORD 'y', IDENTIFIED BY 'y' */
bool
match_role_password(const ScanRule *rule, const ScanSubject *s,
					const ScanHit *hit, ScanMatch *m)
{
	size_t		low = hit->start > 300 ? hit->start - 300 : 0;
	size_t		from = hit->start;
	size_t		value = hit->end;
	const uint8 *text;
	size_t		len;

	if (lower(s->data[hit->start]) == 'i')
	{
		value = skip_blanks(s, value);
		if (!word_at(s, value, "by "))
			return false;
		return literal_after(s, value + 3, m);
	}
	if (!is_blank(at(s, value)) || hit->start == 0 ||
		is_name(s->data[hit->start - 1]))
		return false;
	while (from > low && s->data[from - 1] != ';')
		from--;
	text = s->data + from;

	len = hit->start - from;
	if (!((contains(text, len, "create") || contains(text, len, "alter")) &&
		  (contains(text, len, "role ") || contains(text, len, "user ") ||
		   contains(text, len, "group "))) ||
		contains(text, len, "options"))
		return false;
	return literal_after(s, value, m);
}

/* OPTIONS (user 'x', password 'y') */
bool
match_sql_option(const ScanRule *rule, const ScanSubject *s,
				 const ScanHit *hit, ScanMatch *m)
{
	size_t		name_end = hit->end;
	size_t		low = hit->start > 300 ? hit->start - 300 : 0;
	size_t		from = hit->start;
	Assignment	a;

	if (!is_blank(at(s, name_end)) || quote_at(s, skip_blanks(s, name_end)) == 0)
		return false;
	while (from > low && s->data[from - 1] != ';')
		from--;
	if (!contains(s->data + from, hit->start - from, "options"))
		return false;
	a.name_start = hit->start;
	while (a.name_start > from && is_name(s->data[a.name_start - 1]))
		a.name_start--;
	a.name_end = name_end;
	if (is_innocent_name(s, &a) ||
		(name_end - a.name_start == 3 && lower(s->data[hit->start]) == 'k'))
		return false;
	return literal_after(s, name_end, m);
}

/* host:5432:database:user:password on a line of its own */
bool
match_pgpass(const ScanRule *rule, const ScanSubject *s, const ScanHit *hit,
			 ScanMatch *m)
{
	size_t		low = hit->start > 128 ? hit->start - 128 : 0;
	size_t		start = hit->start;
	size_t		i = hit->end;

	while (start > low && (is_name(s->data[start - 1]) ||
						   s->data[start - 1] == '*'))
		start--;
	if (start == hit->start || (start > 0 && s->data[start - 1] != '\n'))
		return false;
	for (int field = 0; field < 2; field++)
	{
		size_t		from = i;

		while (i < from + 64 && (is_name(at(s, i)) || at(s, i) == '*'))
			i++;
		if (i == from || at(s, i) != ':')
			return false;
		i++;
	}
	start = i;
	while (i < start + 256 && at(s, i) > ' ')
		i++;
	if (i < start + 3 || is_placeholder(s->data + start, i - start))
		return false;
	return match_set(m, s, start, i);
}

/* The word in front of a place: where it begins; *place goes there too. */
static bool
word_before(const ScanSubject *s, size_t *place, const char *word)
{
	size_t		low = *place > 128 ? *place - 128 : 0;
	size_t		i = *place;
	size_t		end;

	while (i > low && (is_blank(s->data[i - 1]) || s->data[i - 1] == '\n'))
		i--;
	if (i == *place)
		return false;
	end = i;
	while (i > low && s->data[i - 1] > ' ')
		i--;
	*place = i;
	return i < end && (word == NULL || (end - i == strlen(word) &&
										word_at(s, i, word)));
}

/* machine x login y password z */
bool
match_netrc(const ScanRule *rule, const ScanSubject *s, const ScanHit *hit,
			ScanMatch *m)
{
	size_t		before = hit->start;
	size_t		start = skip_blanks(s, hit->end);
	size_t		end = start;

	if (start == hit->end ||
		!word_before(s, &before, NULL) || !word_before(s, &before, "login") ||
		!word_before(s, &before, NULL) || !word_before(s, &before, "machine"))
		return false;
	while (end < start + 128 && at(s, end) > ' ')
		end++;
	if (end < start + 4 || is_quote(s->data[start]) ||
		is_placeholder(s->data + start, end - start))
		return false;
	return match_set(m, s, start, end);
}

/* Is an Authorization header, or a variable for one, to the left? */
static bool
is_authorization(const ScanSubject *s, const ScanHit *hit)
{
	static const char *const words[] = {"auth", "header", "curl", NULL};

	return beside(s, hit->start, hit->start, 64, words);
}

bool
match_bearer(const ScanRule *rule, const ScanSubject *s, const ScanHit *hit,
			 ScanMatch *m)
{
	size_t		end = hit->end;

	while (end < hit->end + VALUE_MAX_BYTES &&
		   (is_alnum(at(s, end)) ||
			(at(s, end) != '\0' && strchr("-._~+/=", at(s, end)) != NULL)))
		end++;
	if (end - hit->end < 20 || end - hit->end == VALUE_MAX_BYTES ||
		is_placeholder(s->data + hit->end, end - hit->end) ||
		!is_random(s->data + hit->end, end - hit->end) ||
		!is_authorization(s, hit))
		return false;
	return match_set(m, s, hit->end, end);
}

/* "Basic " and the base64 of user:password */
bool
match_basic_auth(const ScanRule *rule, const ScanSubject *s,
				 const ScanHit *hit, ScanMatch *m)
{
	size_t		end = hit->end;
	char		decoded[256];
	char	   *colon;
	int			len;

	while (end < hit->end + 300 &&
		   (is_alnum(at(s, end)) || at(s, end) == '+' || at(s, end) == '/' ||
			at(s, end) == '='))
		end++;
	if (end - hit->end < 8 || end - hit->end > 300 || !is_authorization(s, hit))
		return false;
	len = crypto_unbase64((const char *) s->data + hit->end, end - hit->end,
						  decoded);
	if (len < 5 || (colon = memchr(decoded, ':', len)) == NULL)
		return false;
	for (int i = 0; i < len; i++)
	{
		if ((uint8) decoded[i] < ' ' || (uint8) decoded[i] >= 0x7F)
			return false;
	}
	colon++;
	if (is_placeholder((uint8 *) colon, decoded + len - colon) ||
		contains((uint8 *) colon, decoded + len - colon, "password"))
		return false;
	crypto_wipe(decoded, sizeof(decoded));
	return match_set(m, s, hit->end, end);
}

/*
 * The last six characters of these tokens are the CRC-32 of the rest after
 * the prefix, in base 62. What has another there was never issued.
 */
bool
check_crc32(const ScanRule *rule, const ScanSubject *s, const ScanHit *hit,
			ScanMatch *m)
{
	static const char digits[] =
	"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
	const uint8 *body = s->data + m->start + 4;
	size_t		len = m->end - m->start - 10;
	uint64		written = 0;
	pg_crc32	crc;

	INIT_TRADITIONAL_CRC32(crc);
	COMP_TRADITIONAL_CRC32(crc, body, len);
	FIN_TRADITIONAL_CRC32(crc);
	for (int i = 0; i < 6; i++)
		written = written * 62 + (strchr(digits, body[len + i]) - digits);
	if (written != crc)
		m->severity = SCAN_LOW;
	return true;
}

/* The token that every text about JWT shows is nobody's. */
bool
check_jwt(const ScanRule *rule, const ScanSubject *s, const ScanHit *hit,
		  ScanMatch *m)
{
	return !contains(s->data + m->start, m->end - m->start,
					 "eyjzdwiioiixmjm0nty3odkwi");
}
