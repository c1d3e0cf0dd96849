/*
 * driver.h
 *		What carries an event to a destination.
 *
 * A driver is a small interface and a table of options. Most talk to the
 * network: submit() starts an attempt and returns, and the attempt ends later
 * with one outcome. Those that work inside the database have execute()
 * instead, which runs in the transaction that records the outcome, so that it
 * happens exactly once. No field of any protocol appears outside its driver.
 */
#ifndef MLINT_DRIVER_H
#define MLINT_DRIVER_H

#include "common/breaker.h"
#include "common/http.h"
#include "common/option.h"
#include "common/retry.h"

/* An event as it travels: the envelope as JSON text, and where data lies. */
typedef struct Event
{
	int64		id;
	int			segment;
	int			refs;			/* deliveries that still need it */
	TimestampTz published_at;
	TimestampTz deliver_at;		/* 0: at once */
	int32		destination_id; /* 0: all that match */
	const char *type;
	const char *webhook_id;
	const char *body;			/* {"id","type","timestamp","data","metadata"} */
	size_t		body_len;
	const char *data;			/* within body */
	size_t		data_len;
	const char *fault;			/* it cannot be written as JSON, because … */
} Event;

typedef enum OutcomeKind
{
	OUTCOME_DELIVERED,
	OUTCOME_RETRY,				/* failed, and may succeed later */
	OUTCOME_DEAD,				/* failed, and always will */
	OUTCOME_PARKED				/* not attempted: wait in mlint.pending */
} OutcomeKind;

typedef struct Outcome
{
	OutcomeKind kind;
	int			status;			/* 0: there was none */
	int			retry_after;	/* seconds that the peer asks for; -1: none */
	bool		disable;		/* the destination is gone for good */
	int64		elapsed_us;
	int64		bytes;			/* of the body sent */
	char		error[256];		/* for a person; "" when delivered */
} Outcome;

typedef struct Attempt Attempt;
typedef void (*AttemptDone) (Attempt *attempt, const Outcome *outcome);

struct Attempt
{
	Event	   *event;
	const char *body;			/* what to send: the event's envelope, or what
								 * the destination's transform made of it */
	size_t		body_len;
	bool		transformed;
	AttemptDone done;			/* called once, perhaps from within submit() */
	void	   *driver_data;	/* the driver's, while the attempt lasts */
};

/* The options that every destination has, in front of its driver's own. */
typedef struct DeliveryOptions
{
	int			max_in_flight;
	bool		ordered;
	char	   *transform;
	char	   *rate_rule;		/* NULL: as fast as can be */
	char	   *rate_identifier;	/* NULL: the destination's name */
	RetryPolicy retry;
	BreakerPolicy breaker;
} DeliveryOptions;

typedef struct Driver
{
	const char *name;
	const char *help;
	const Option *options;		/* offsets in its struct, whose first member
								 * is a DeliveryOptions */
	size_t		options_size;

	/*
	 * More than a table can check, as the role that the destination will
	 * belong to. Raises ERRCODE_MLINT_CONFIGURATION. May be NULL.
	 */
	void		(*check) (const void *options, Oid owner);

	/*
	 * Resolve credentials and get ready, in a transaction; may raise. The
	 * state lives in the current memory context until close(), which frees
	 * and wipes what is not palloc'd. http is NULL when execute is set.
	 */
	void	   *(*open) (const void *options, Oid owner, HttpClient *http);
	void		(*close) (void *state);

	/* Never raises. */
	void		(*submit) (void *state, Attempt *attempt);

	/*
	 * Do it now, in the current transaction; raising is failing. Runs as the
	 * bootstrap superuser: the driver changes to the owner.
	 */
	void		(*execute) (void *state, Attempt *attempt);
} Driver;

/* The drivers there are. NULL ends the list. */
extern const Driver *const drivers[];
extern const Driver *driver_find(const char *name);

/*
 * Parse a destination's options into a fresh struct. Raises
 * ERRCODE_MLINT_CONFIGURATION.
 */
extern void *driver_parse_options(const Driver *driver, Jsonb *options,
								  const char *destination);

/* Everything that can be checked before a destination is created. */
extern void driver_check(const Driver *driver, const void *options,
						 Oid owner, const char *destination);

/* Of that, what may change while it is there: what its owner may use. */
extern void driver_check_rights(const Driver *driver, const void *options,
								Oid owner, const char *destination);

/* Does a destination with these options run the user's SQL? */
extern bool driver_runs_sql(const Driver *driver, const void *options);

/*
 * A function of the user's named in an option: fn(jsonb) with the given result
 * type (InvalidOid: any), which the owner may execute. Raises
 * ERRCODE_MLINT_CONFIGURATION or ERRCODE_INSUFFICIENT_PRIVILEGE.
 */
extern Oid	driver_function(const char *name, Oid result, Oid owner,
							const char *what);

/*
 * Look it up, as it is now, and call it with the event's envelope, as the owner,
 * in a security-restricted operation; in a worker, for no longer than the
 * timeout. The text of a result of type jsonb, palloc'd, or NULL; errors pass
 * through.
 */
#define DRIVER_TRANSFORM_TIMEOUT_MS	10000

extern char *driver_call_function(const char *name, Oid result, Oid owner,
								  const char *what, const char *json,
								  int timeout_ms);

/* What HTTP-based drivers share; drivers/http.c. */
typedef struct HttpSender HttpSender;

/* Header lines ("Name: value") are copied. */
extern HttpSender *http_sender_create(HttpClient *client,
									  const HttpTarget *target);
extern void http_sender_add_header(HttpSender *sender, const char *name,
								   const char *value);
extern void http_sender_free(HttpSender *sender);

/*
 * Send body with the sender's headers and these (which the call takes), and
 * end the attempt. free_body: pfree(body) afterwards.
 */
extern void http_sender_send(HttpSender *sender, Attempt *attempt,
							 struct curl_slist *headers,
							 const char *body, size_t body_len,
							 bool free_body);

/* One a file of drivers/; drivers.c has the list. */
extern const Driver http_driver;
extern const Driver slack_driver;
extern const Driver discord_driver;
extern const Driver function_driver;
extern const Driver notify_driver;

#endif
