/*
 * acme.h
 *		The client's side of ACME (RFC 8555), between its files.
 *
 * The protocol is a set of rows (accounts, orders, challenges, renewal windows,
 * revocations), each of which wants at most one request next. run.c keeps up to
 * ACME_MAX_IN_FLIGHT requests under way on one HttpClient, whatever they are
 * for: an authority that is slow delays its own orders and nobody else's. What
 * request a row wants next, and what an answer means for it, is decided without
 * waiting; an answer's consequences are committed in one transaction before the
 * row's next request leaves.
 *
 *	answer.c		what authorities say, read
 *	jws.c			what we say, signed
 *	account.c		the functions about accounts
 *	authority.c		an account as a run knows it: keys, directory, nonces
 *	registration.c	the steps of an account
 *	order.c			the steps of an order
 *	challenge.c		the steps of a challenge
 *	certificate.c	revocations and renewal windows
 *	run.c			the job
 */
#ifndef MLINT_ACME_H
#define MLINT_ACME_H

#include "certs/acme/answer.h"
#include "certs/acme/jws.h"
#include "common/http.h"
#include "lib/ilist.h"

#define ACME_MAX_IN_FLIGHT	32
/* Of one account, so that a slow authority leaves room for others. */
#define ACME_MAX_OF_ACCOUNT	16
#define ACME_MAX_ANSWER		(512 * 1024)

/* Failures in a row after which a step is given up. */
#define ACME_MAX_ATTEMPTS	8
/* The same when the server does not speak ACME: that will hardly pass. */
#define ACME_MAX_NONSENSE	3
/* Polls: 13 seconds for the first eight, then one every ten: ten minutes. */
#define ACME_MAX_POLLS		66

/* ---- an account, as a run knows it ---- */

#define ACME_NONCES			64

typedef struct AcmeAccount
{
	dlist_node	node;
	int32		id;
	MemoryContext row;			/* what of the row has no fixed size */
	char	   *name;
	char	   *directory_url;
	char	   *email;			/* NULL: none */
	char	   *eab;			/* JSON text, or NULL */
	char	   *ca_reference;	/* the like */
	char	   *key_secret;
	int			key_version;
	int			new_key_version;	/* 0: no rollover */
	char	   *status;
	char	   *url;			/* NULL: not registered */
	char	   *orders_url;
	int			attempts;
	TimestampTz not_before;
	TimestampTz next_at;		/* DT_NOEND: nothing is to be done */
	JwsKey	   *key;			/* NULL: not needed so far */
	JwsKey	   *new_key;
	char	   *ca;				/* PEM, or NULL */
	MemoryContext keys;			/* of these three */
	uint64		secrets;		/* what credential_generation() was then */
	Answer	   *directory;		/* NULL: to be fetched */
	MemoryContext directories;
	Origins		origins;
	bool		fetching;		/* somebody fetches the directory */
	int			in_flight;
	int			nnonces;
	char	   *nonces[ACME_NONCES];
} AcmeAccount;

/* At the beginning of a run, whose memory this is. */
extern void accounts_begin(MemoryContext context);

/* What there is of it in memory. */
extern AcmeAccount *account_find(int32 id);

/* Load it, or again; NULL: there is none. In a transaction. */
extern AcmeAccount *account_load(int32 id);

/* Its key, opened when first needed; the new one of a rollover. */
extern const JwsKey *account_key(AcmeAccount *account);
extern const JwsKey *account_new_key(AcmeAccount *account);

extern const DirectoryAnswer *account_directory(const AcmeAccount *account);
extern void account_take_directory(AcmeAccount *account, Answer *answer);
extern void account_forget_directory(AcmeAccount *account);

extern void account_put_nonce(AcmeAccount *account, const char *nonce);

/* NULL: there is none. */
extern char *account_take_nonce(AcmeAccount *account);

/* The server wants to be left alone for so long (-1: it does not say). */
extern void account_hold(AcmeAccount *account, int retry_after);

/* The server does not know the account: it must be registered anew. */
extern void account_lost(AcmeAccount *account, const char *error);

/* ---- errands ---- */

typedef enum Signature
{
	SIGNED_BY_ACCOUNT,			/* kid */
	SIGNED_BY_KEY,				/* jwk: there is no account yet */
	SIGNED_BY_NEW_KEY,			/* the same with that of a rollover */
	UNSIGNED					/* a GET */
} Signature;

/* A request that a row wants. */
typedef struct Want
{
	AnswerKind	kind;			/* what must come back */
	const char *url;
	const char *payload;		/* "": POST-as-GET */
	Signature	signature;
} Want;

struct Errand;

/* What a kind of row does with its turn; all in a transaction. */
typedef struct ErrandKind
{
	const char *name;

	/*
	 * What does the row want next? Fills errand->want, texts in
	 * errand->context. False: nothing for now, and when is in the row.
	 */
	bool		(*next) (struct Errand *errand);

	/*
	 * This has come back; next() is called afterwards. Returns what is wrong
	 * with it, if it is not what it has to be: then nothing has changed.
	 */
	const char *(*answered) (struct Errand *errand, const Answer *answer);

	/*
	 * It is not to be had. text says why, for a person; problem is NULL when
	 * the server did not even say. next() is called afterwards, but for what
	 * every request takes: then step is 0, and the row must wait, or be over.
	 */
	void		(*refused) (struct Errand *errand, const Problem *problem,
							const char *text);

	/* It may be had later: count a failure. Gives up, or waits so long. */
	void		(*failed) (struct Errand *errand, const char *text, int max,
						   int retry_after);

	/* Nothing is wrong with the row, but it must wait until then. */
	void		(*put_off) (struct Errand *errand, TimestampTz until);
} ErrandKind;

typedef struct Errand
{
	dlist_node	node;
	const ErrandKind *kind;
	int64		id;
	AcmeAccount *account;
	MemoryContext context;		/* until the row's turn is over */
	Want		want;
	int			step;			/* the kind's own */
	void	   *state;			/* the kind's own, in context */
	int			retry_after;	/* of the answer at hand; -1: not said */
	const char *reached;		/* a constant, for INJECTION */

	/* run.c's own. */
	int			phase;
	int			nonce_rejections;
	HttpRequest *request;
	char	   *body;
	HttpResponse *response;
	bool		done;
} Errand;

extern const ErrandKind account_errand;
extern const ErrandKind order_errand;
extern const ErrandKind challenge_errand;
extern const ErrandKind revocation_errand;
extern const ErrandKind renewal_errand;

/* Another row's turn in place of this one's; next() is called for it. */
extern void errand_become(Errand *errand, const ErrandKind *kind, int64 id);

/* What a server says, as a row can hold it; about: of which name, or NULL. */
extern char *problem_message(const Problem *problem, const char *about);

/* ---- when next ---- */

/* No server may have us wait for longer. */
#define RETRY_AFTER_MAX_S	(24 * 3600)

/* After so many failures in a row: jittered, from a second to five minutes. */
extern TimestampTz retry_at(int attempts, int retry_after);

/* After so many polls: from a twentieth of a second to ten seconds. */
extern TimestampTz poll_at(int polls, int retry_after);

/* ---- challenge.c ---- */

/* An order is over, or its names are proven: nothing need be shown any more. */
extern void challenges_end(int64 order);

/* At the beginning of a run: put right what has happened in between. */
extern void challenges_begin(void);

/* ---- SQL ---- */

/* In an owner scope of its own. Plans are kept. */
#define ACME_SQL(sql, expected, types, values, nulls) \
	do { \
		static SPIPlanPtr plan_ = NULL; \
		owner_run(&plan_, sql, expected, lengthof(types), types, values, \
				  nulls); \
	} while (0)

/* And the scope. */
#define ACME_DO(sql, expected, types, values, nulls) \
	do { \
		static SPIPlanPtr plan_ = NULL; \
		owner_do(&plan_, sql, expected, lengthof(types), types, values, \
				 nulls); \
	} while (0)

#endif
