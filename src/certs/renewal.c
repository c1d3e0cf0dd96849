/*
 * renewal.c
 *		When a certificate is renewed, and when it is tried again.
 *
 * The authority may suggest a window (RFC 9773): then it is a random moment in
 * that, at once when that is past, so that an authority that must revoke has
 * everybody renew in time. Else it is renew_before, or a third of the lifetime,
 * before the end, and up to 3 % of the lifetime earlier, so that certificates
 * that were issued together are not renewed together. All that is in
 * proportion to the lifetime: it is right for an hour as well as for a year.
 *
 * Two bounds keep mistakes of others from doing harm. However late a suggested
 * window is, a twentieth of the lifetime is left; and of two renewals in a row
 * the second is an hour away (or a quarter of the lifetime), so that an
 * authority that always says "at once" is not asked all the time. A
 * renew_before that is longer than the lifetime counts as three quarters of it.
 *
 * After a failure the delay doubles, from 5 minutes to a day; but when the end
 * is near, it is no more than a quarter of what is left, and an hour at most
 * when nothing is. What the authority asks for is kept to in any case, up to a
 * week.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "certs/lifecycle.h"
#include "common/owner.h"
#include "common/pg_prng.h"
#include "utils/timestamp.h"

#define MINUTE_US			(60 * USECS_PER_SEC)
#define HOUR_US				(60 * MINUTE_US)
#define RETRY_FIRST_US		(5 * MINUTE_US)
#define RETRY_LONGEST_US	USECS_PER_DAY
#define RETRY_SHORTEST_US	MINUTE_US
#define RETRY_DOUBLINGS_MAX	10
#define RETRY_AFTER_MAX_S	(7 * SECS_PER_DAY)
#define JITTER				0.03

/* From 0 to 1. */
static double
some(void)
{
	return pg_prng_double(&pg_global_prng_state);
}

/* The moment by the lifetime, or by renew_before. */
static TimestampTz
own_time(const CertificateVersion *v, double renew_before_s)
{
	int64		lifetime = v->not_after - v->not_before;
	int64		before = lifetime / 3;

	if (renew_before_s >= 0)
		before = Min(renew_before_s * USECS_PER_SEC, lifetime * 0.75);
	return v->not_after - before - (int64) (lifetime * JITTER * some());
}

static TimestampTz
suggested_time(const CertificateVersion *v)
{
	int64		lifetime = v->not_after - v->not_before;
	TimestampTz at = v->ari_start +
	(int64) ((v->ari_end - v->ari_start) * some());

	at = Min(at, v->not_after - lifetime / 20);
	if (v->before_issued_at != DT_NOBEGIN)
		at = Max(at, v->issued_at + Min(HOUR_US, lifetime / 4));
	return at;
}

TimestampTz
renewal_time(const CertificateVersion *v, double renew_before_s)
{
	return v->ari_start != 0 ? suggested_time(v) :
		own_time(v, renew_before_s);
}

TimestampTz
renewal_retry_time(int attempts, TimestampTz not_after, int retry_after_s)
{
	TimestampTz now = GetCurrentTimestamp();
	int64		delay = RETRY_FIRST_US <<
	Min(Max(attempts - 1, 0), RETRY_DOUBLINGS_MAX);

	delay = Min(delay, RETRY_LONGEST_US);
	if (not_after > now)
		delay = Min(delay, Max((not_after - now) / 4, RETRY_SHORTEST_US));
	else if (not_after != DT_NOBEGIN)
		delay = Min(delay, HOUR_US);
	delay += (int64) (delay * some() / 4);
	delay = Max(delay, (int64) Min(retry_after_s, RETRY_AFTER_MAX_S) *
				USECS_PER_SEC);
	return now + delay;
}

void
renewal_schedule(const Certificate *c, const CertificateVersion *v)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {UUIDOID, TIMESTAMPTZOID};
	Datum		values[] = {UUIDPGetDatum(&c->id), 0};
	char		nulls[] = {' ', 'n'};

	if (c->account != 0 && c->auto_renew)
	{
		values[1] = TimestampTzGetDatum(renewal_time(v, c->renew_before_s));
		nulls[1] = ' ';
	}
	owner_do(&plan,
			 "UPDATE mlint.certificate SET due_at = $2 WHERE id = $1",
			 SPI_OK_UPDATE, 2, types, values, nulls);
}
