/*
 * kind.h
 *		What a kind of secret backend is, and what it may call.
 *
 * A kind is a table of options and a few verbs. A verb talks to its peer by
 * way of exchange(), and reports a failure of the peer as a value: it calls
 * backend_fail() and returns what that returns. backend.c then decides whether
 * the failure is raised, or a value that is a little old is served instead.
 * What is raised in a verb is only what has nothing to do with the peer: an
 * interrupt, or a credential that does not resolve.
 *
 * All runs in a memory context that ends with the call. What must not stay
 * in memory after that is told to confidential(), which also keeps it out of
 * messages.
 */
#ifndef MLINT_KIND_H
#define MLINT_KIND_H

#include "common/api.h"
#include "common/breaker.h"
#include "common/configured.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "secrets/backend.h"

/* What every backend has; the options of a kind begin with this. */
typedef struct BackendOptions
{
	int			timeout_ms;
	int			cache_ttl_s;
	int			stale_s;
	BreakerPolicy breaker;
} BackendOptions;

typedef enum BackendResult
{
	BACKEND_OK,
	BACKEND_ABSENT,				/* no such secret, or no such version */
	BACKEND_FAILED				/* backend_fail() says why */
} BackendResult;

typedef struct BackendKind BackendKind;

/* Something that must be wiped when the call ends. */
typedef struct Confidential
{
	struct Confidential *next;
	char	   *data;
	size_t		len;
} Confidential;

/* One call of one verb. */
typedef struct Backend
{
	int32		id;
	char	   *name;
	const BackendKind *kind;
	const BackendOptions *options;	/* the kind's struct */
	uint8		digest[32];		/* of the options as they are written */
	TimestampTz deadline;
	MemoryContext context;
	Confidential *confidential;

	/* The failure. */
	int			sqlstate;
	bool		down;			/* the peer cannot answer now: retry, be stale */
	char	   *reason;			/* the rest of a sentence, for errmsg */
	char	   *detail;			/* in the peer's words, or NULL */
	const char *hint;
} Backend;

typedef void (*NameVisitor) (const char *name, void *arg);

struct BackendKind
{
	ConfiguredKind base;
	bool		local;			/* reading costs nothing: always read */

	/*
	 * What the table cannot say. Returns whether the options make use of what
	 * belongs to the server's operating-system user; raises
	 * ERRCODE_MLINT_CONFIGURATION.
	 */
	bool		(*check) (const BackendOptions *options, const char *what);

	BackendResult (*get) (Backend *b, const char *name, const char *version,
						  SecretValue *value);
	BackendResult (*put) (Backend *b, const char *name, const void *data,
						  size_t len, const SecretAbout *about,
						  char **version);
	BackendResult (*delete) (Backend *b, const char *name);
	BackendResult (*versions) (Backend *b, const char *name,
							   VersionVisitor visit, void *arg);
	BackendResult (*list) (Backend *b, const char *prefix, NameVisitor visit,
						   void *arg);

	/* A harmless call; *words says what was found. */
	BackendResult (*test) (Backend *b, char **words);

	/* Keep up what runs out by itself. NULL: nothing does. */
	BackendResult (*tend) (Backend *b);
};

/* Versions that tell nothing more than that there is one. */
#define VERSION_CURRENT	"current"

/*
 * Report a failure: reason goes on a sentence, "could not ...: ", and must
 * hold nothing that the peer said; detail may, and is made fit to show.
 */
extern BackendResult backend_fail(Backend *b, int sqlstate, bool down,
								  const char *detail, const char *hint,
								  const char *reason,...)
			pg_attribute_printf(6, 7);

/* Wipe this when the call ends, and never show it. Returns data. */
extern char *confidential(Backend *b, char *data, size_t len);

/* A credential's value, confidential, terminated. */
extern char *backend_credential(Backend *b, const Credential *c);

/* A variable of the server's environment; NULL when unset or empty. */
extern const char *environment(const char *name);

/* ---- what a kind keeps between calls, sealed, for all processes ---- */

/* NULL when nothing is kept under this name. Confidential. */
extern char *backend_kept(Backend *b, const char *slot);
extern void backend_keep(Backend *b, const char *slot, const char *text,
						 int64 seconds);
extern void backend_unkeep(Backend *b, const char *slot);

/* ---- HTTP and JSON ---- */

typedef struct Exchange
{
	const char *method;			/* NULL: POST with a body, GET without */
	const char *url;
	const char *ca;
	const char *body;			/* confidential already, if it has to be */
	struct curl_slist *headers; /* passed on, and freed */
	bool		metadata;		/* see HttpTarget */
	bool		json_optional;	/* the answer may be plain text */

	int			status;
	char	   *text;			/* of the answer, confidential */
	json_t	   *json;			/* NULL when it is no JSON; freed by itself */
} Exchange;

/*
 * One exchange within what is left of the call's time. False, with the failure
 * reported, when there was no whole answer, or one that says the peer is down
 * (429 and 500 or more).
 */
extern bool exchange(Backend *b, Exchange *e);

/* Report the status of an answer that is none of the expected ones. */
extern BackendResult exchange_refused(Backend *b, const Exchange *e,
									  const char *peer_says);

/* Report an answer that is not what the protocol says. */
extern BackendResult exchange_strange(Backend *b, const char *what);

/* An empty object. */
#define json_object_new()	json_pack("{}")

/* json_dumps(), palloc'd and confidential; the json_t is freed. */
extern char *json_write(Backend *b, json_t *json);

/* Free the json_t when the call ends. */
extern json_t *json_own(Backend *b, json_t *json);

/* Is this UTF-8, so that JSON can carry it? */
extern bool json_carries(const void *data, size_t len);

/*
 * What is told about a secret, as an object of strings: type, description,
 * and the members of metadata. NULL when there is nothing.
 */
extern json_t *about_object(Backend *b, const SecretAbout *about);

/* Percent-encode a value for a query or a form. */
extern char *url_escape(Backend *b, const char *text);

/* "2026-01-02T03:04:05.678Z"; 0 when it is not that. */
extern TimestampTz time_from_text(const char *text);
extern TimestampTz time_from_epoch(double seconds);

/* One a file of backends/; backend_admin.c has the list. */
extern const BackendKind vault_kind;
extern const BackendKind aws_kind;
extern const BackendKind azure_kind;
extern const BackendKind env_kind;
extern const BackendKind file_kind;

#endif
