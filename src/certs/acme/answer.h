/*
 * answer.h
 *		What an authority answers, read.
 *
 * Pure functions on bytes: no database, no palloc, no ereport, so that they can
 * be fuzzed outside of a server. Whatever is read may be hostile. Sizes, depth
 * and counts are bounded; every text is of the right type and of bounded
 * length; every URL is on a host that the authority's directory vouches for.
 */
#ifndef MLINT_ACME_ANSWER_H
#define MLINT_ACME_ANSWER_H

#include "datatype/timestamp.h"

/* Names of an order, and so authorizations. */
#define ANSWER_MAX_NAMES		100
#define ANSWER_MAX_CHALLENGES	16
#define ANSWER_MAX_ORDERS		1000
#define ANSWER_MAX_SUBPROBLEMS	16
#define ANSWER_MAX_DEPTH		16
#define ANSWER_URL_MAX			2000
#define ANSWER_NONCE_MAX		512
#define ANSWER_TOKEN_MAX		128

/*
 * Where an authority may send us: scheme, host and port of its directory and of
 * what that names. All https; http only when the directory itself is.
 */
#define ORIGINS_MAX				8
#define ORIGIN_BYTES			280

typedef struct Origins
{
	int			n;
	char		origin[ORIGINS_MAX][ORIGIN_BYTES];
} Origins;

/* Those of a directory that has not been read yet. False: it is no such URL. */
extern bool origins_begin(Origins *origins, const char *directory_url);
extern bool origins_allow(const Origins *origins, const char *url);

typedef enum AcmeStatus
{
	ACME_PENDING,
	ACME_READY,
	ACME_PROCESSING,
	ACME_VALID,
	ACME_INVALID,
	ACME_DEACTIVATED,
	ACME_EXPIRED,
	ACME_REVOKED
} AcmeStatus;

/* What we do about a problem depends on these; RFC 8555, 6.7 has the rest. */
typedef enum ProblemKind
{
	PROBLEM_OTHER,				/* what we asked for will not be */
	PROBLEM_BAD_NONCE,
	PROBLEM_RATE_LIMITED,
	PROBLEM_TRANSIENT,			/* the server's own trouble */
	PROBLEM_NO_ACCOUNT,
	PROBLEM_ORDER_NOT_READY,
	PROBLEM_ALREADY_REVOKED,
	PROBLEM_ALREADY_REPLACED
} ProblemKind;

typedef struct Subproblem
{
	const char *type;
	const char *detail;
	const char *identifier;
} Subproblem;

/* Texts are NULL when they are not there; type is without its prefix. */
typedef struct Problem
{
	ProblemKind kind;
	int			status;
	const char *type;
	const char *detail;
	const char *instance;		/* where a person can do something about it */
	int			nsub;			/* all; sub has the first */
	Subproblem	sub[ANSWER_MAX_SUBPROBLEMS];
} Problem;

typedef enum AnswerKind
{
	ANSWER_DIRECTORY,
	ANSWER_NONCE,				/* nothing but its header */
	ANSWER_ACCOUNT,
	ANSWER_ORDER,
	ANSWER_AUTHORIZATION,
	ANSWER_CHALLENGE,
	ANSWER_CHAIN,
	ANSWER_RENEWAL,
	ANSWER_ORDERS,
	ANSWER_DONE					/* that it is 200 says all */
} AnswerKind;

#define ANSWER_KINDS	(ANSWER_DONE + 1)

typedef enum AnswerOutcome
{
	ANSWER_GOOD,
	ANSWER_PROBLEM,				/* the server says no */
	ANSWER_MALFORMED,			/* it is not what it has to be; see fault */
	ANSWER_REDIRECT				/* and is not followed */
} AnswerOutcome;

typedef struct DirectoryAnswer
{
	const char *new_nonce;
	const char *new_account;
	const char *new_order;
	const char *revoke;			/* from here on they may be NULL */
	const char *key_change;
	const char *renewal_info;
	bool		binding_required;	/* externalAccountRequired */
	Origins		origins;
} DirectoryAnswer;

typedef struct AccountAnswer
{
	AcmeStatus	status;
	const char *orders;			/* NULL: the server lists none */
} AccountAnswer;

typedef struct Identifier
{
	bool		address;		/* type "ip" */
	const char *value;
} Identifier;

typedef struct OrderAnswer
{
	AcmeStatus	status;
	TimestampTz expires;		/* 0: not said */
	int			n;
	Identifier	identifiers[ANSWER_MAX_NAMES];
	int			nauthorizations;
	const char *authorizations[ANSWER_MAX_NAMES];
	const char *finalize;
	const char *certificate;	/* NULL: not yet */
	bool		has_problem;
	Problem		problem;
} OrderAnswer;

typedef struct ChallengeAnswer
{
	const char *type;
	const char *url;
	const char *token;			/* NULL: of a type that we do not know */
	AcmeStatus	status;
	bool		has_problem;
	Problem		problem;
} ChallengeAnswer;

typedef struct AuthorizationAnswer
{
	AcmeStatus	status;
	Identifier	identifier;
	bool		wildcard;
	int			n;
	ChallengeAnswer challenges[ANSWER_MAX_CHALLENGES];
} AuthorizationAnswer;

typedef struct RenewalAnswer
{
	TimestampTz start;
	TimestampTz end;
	const char *url;			/* an explanation, for people; or NULL */
} RenewalAnswer;

typedef struct OrdersAnswer
{
	int			n;
	const char *urls[ANSWER_MAX_ORDERS];
	char		next[ANSWER_URL_MAX + 1];	/* page; "": this is the last */
} OrdersAnswer;

/* Texts belong to json, or to the body that was given. */
typedef struct Answer
{
	AnswerOutcome outcome;
	int			status;
	char		fault[200];		/* what is malformed, ASCII */
	char		nonce[ANSWER_NONCE_MAX + 1];	/* "": none */
	char		location[ANSWER_URL_MAX + 1];	/* "": none */
	Problem		problem;
	union
	{
		DirectoryAnswer directory;
		AccountAnswer account;
		OrderAnswer order;
		AuthorizationAnswer authorization;
		ChallengeAnswer challenge;
		RenewalAnswer renewal;
		OrdersAnswer orders;
		const char *chain;		/* PEM, so far as one can see */
	};
	struct json_t *json;
} Answer;

/* What came, as the HTTP client has it. */
typedef struct Received
{
	int			status;
	const char *headers;		/* lines */
	size_t		headers_len;
	const char *body;			/* terminated */
	size_t		body_len;
	bool		truncated;		/* there was more */
	bool		retry_after;	/* it says when to come again */
} Received;

/*
 * Read an answer. origins is what the URLs in it must be on; of a directory,
 * those of its own URL. The struct is the caller's, who calls answer_free().
 */
extern void answer_read(AnswerKind kind, const Origins *origins,
						const Received *received, Answer *answer);
extern void answer_free(Answer *answer);

/*
 * A problem in one line for a person, cut to what has room: no control
 * characters, but whatever UTF-8 the server likes. "about" may be NULL.
 */
extern void problem_text(const Problem *problem, const char *about, char *out,
						 size_t size);

/* The time that an RFC 3339 text means. */
extern bool answer_time(const char *text, TimestampTz *time);

#endif
