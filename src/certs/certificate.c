/*
 * certificate.c
 *		The row of a certificate: locking it, its state, its events.
 *
 * Whoever changes a certificate locks its row first, and what it decides by is
 * read under the lock. Every change of state goes through certificate_enter(),
 * so that each has its audit entry.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "certs/lifecycle.h"
#include "common/compat.h"
#include "common/owner.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

/* Bytes of an error that events and audit entries show. */
#define ERROR_MAX	2000

const char *const certificate_states[] = {"REQUESTED", "ISSUING", "ISSUED",
"ACTIVE", "RENEWING", "FAILED", "REVOKED", "EXPIRED"};

void
certificate_unknown(const pg_uuid_t *id)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("certificate %s does not exist", certificate_id_text(id)),
			 errhint("The view mlint.certificates lists them.")));
}

char *
certificate_id_text(const pg_uuid_t *id)
{
	return DatumGetCString(DirectFunctionCall1(uuid_out,
											   UUIDPGetDatum(id)));
}

static CertificateState
state_of(const char *name)
{
	for (int i = 0; i < lengthof(certificate_states); i++)
	{
		if (strcmp(certificate_states[i], name) == 0)
			return (CertificateState) i;
	}
	elog(ERROR, "unknown state of a certificate");
	return CERTIFICATE_FAILED;	/* keep the compiler quiet */
}

/* The row at hand, into the struct; in the caller's context. */
static void
take_row(Certificate *c)
{
	bool		isnull;
	Datum		value;

	c->name = owner_text(1);
	c->domains = DatumGetArrayTypePCopy(owner_column(2, &isnull));
	c->account = DatumGetInt32(owner_column(3, &isnull));
	c->key_type = owner_text(4);
	c->auto_renew = DatumGetBool(owner_column(5, &isnull));
	c->reuse_key = DatumGetBool(owner_column(6, &isnull));
	c->renew_before_s = DatumGetFloat8(owner_column(7, &isnull));
	c->state = state_of(owner_text(8));
	c->key_secret = owner_text(9);
	c->version = DatumGetInt64(owner_column(10, &isnull));
	c->next_version = DatumGetInt64(owner_column(11, &isnull));
	c->attempts = DatumGetInt32(owner_column(12, &isnull));
	c->error = owner_text(13);
	value = owner_column(14, &isnull);
	c->created_by = DatumGetObjectId(value);
}

/* What the version in use says; read under the lock of the certificate. */
static void
take_version(Certificate *c)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(c->version)};
	bool		isnull;

	c->revoked = false;
	c->not_after = DT_NOBEGIN;
	owner_run(&plan,
			  "SELECT revoked_at IS NOT NULL, not_after"
			  " FROM mlint.certificate_version WHERE id = $1",
			  SPI_OK_SELECT, 1, types, values, NULL);
	if (SPI_processed == 0)
		return;
	c->revoked = DatumGetBool(owner_column(1, &isnull));
	c->not_after = DatumGetTimestampTz(owner_column(2, &isnull));
}

bool
certificate_lock(const pg_uuid_t *id, Certificate *c)
{
	static SPIPlanPtr plan = NULL;
	MemoryContext caller = CurrentMemoryContext;
	OwnerScope	scope;
	Oid			types[] = {UUIDOID};
	Datum		values[] = {UUIDPGetDatum(id)};
	bool		found;

	memset(c, 0, sizeof(*c));
	c->id = *id;
	owner_begin(&scope);
	owner_run(&plan,
			  "SELECT name, domains, coalesce(account_id, 0), key_type,"
			  " auto_renew, reuse_key,"
			  " coalesce(EXTRACT(epoch FROM renew_before)::float8, -1), state,"
			  " key_secret, coalesce(version_id, 0),"
			  " coalesce(next_version_id, 0), attempts, error, created_by"
			  " FROM mlint.certificate WHERE id = $1 FOR NO KEY UPDATE",
			  SPI_OK_SELECT, 1, types, values, NULL);
	found = SPI_processed > 0;
	if (found)
	{
		MemoryContext spi = MemoryContextSwitchTo(caller);

		take_row(c);
		MemoryContextSwitchTo(spi);
		take_version(c);
	}
	owner_end(&scope);
	return found;
}

CertificateState
certificate_rest(const Certificate *c)
{
	if (c->next_version != 0)
		return CERTIFICATE_ISSUED;
	if (c->version == 0)
		return c->attempts > 0 ? CERTIFICATE_FAILED : CERTIFICATE_REQUESTED;
	if (c->revoked)
		return CERTIFICATE_REVOKED;
	return c->not_after > GetCurrentTimestamp() ? CERTIFICATE_ACTIVE :
		CERTIFICATE_EXPIRED;
}

bool
certificate_ordered(const Certificate *c)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {UUIDOID};
	Datum		values[] = {UUIDPGetDatum(&c->id)};

	return owner_do(&plan,
					"SELECT FROM mlint.acme_order WHERE certificate_id = $1"
					" AND finished_at IS NULL",
					SPI_OK_SELECT, 1, types, values, NULL);
}

void
certificate_enter(Certificate *c, CertificateState state, const char *details)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {UUIDOID, TEXTOID};
	Datum		values[] = {UUIDPGetDatum(&c->id),
	CStringGetTextDatum(certificate_states[state])};
	StringInfoData entry;

	if (c->state == state)
		return;
	initStringInfo(&entry);
	appendStringInfo(&entry, "{\"id\": \"%s\", \"from\": \"%s\", \"to\": \"%s\"",
					 certificate_id_text(&c->id), certificate_states[c->state],
					 certificate_states[state]);
	/* Its members go behind ours. */
	if (details)
		appendStringInfo(&entry, ", %s", details + 1);
	else
		appendStringInfoChar(&entry, '}');
	audit(AUDIT_CHANGED, "certificate.transition", "certificate", c->name,
		  entry.data);
	owner_do(&plan,
			 "UPDATE mlint.certificate SET state = $2,"
			 " state_at = pg_catalog.clock_timestamp() WHERE id = $1",
			 SPI_OK_UPDATE, 2, types, values, NULL);
	c->state = state;
}

void
certificate_publish(const Certificate *c, const char *type, int64 version,
					const char *more)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {UUIDOID, TEXTOID, INT8OID, TEXTOID};
	Datum		values[] = {UUIDPGetDatum(&c->id), CStringGetTextDatum(type),
		Int64GetDatum(version ? version : c->version),
	CStringGetTextDatum(more ? more : "{}")};

	owner_do(&plan,
			 "SELECT mlint.publish($2, pg_catalog.jsonb_build_object("
			 "'id', c.id, 'name', c.name, 'domains', c.domains,"
			 " 'state', c.state, 'account', a.name, 'serial', v.serial,"
			 " 'issuer', v.issuer,"
			 " 'fingerprint_sha256', pg_catalog.encode(v.fingerprint, 'hex'),"
			 " 'not_before', v.not_before, 'not_after', v.not_after,"
			 " 'renew_at', c.due_at, 'attempts', c.attempts,"
			 " 'error', c.error) || $4::jsonb)"
			 " FROM mlint.certificate c"
			 " LEFT JOIN mlint.certificate_version v ON v.id = $3"
			 " LEFT JOIN mlint.acme_account a ON a.id = c.account_id"
			 " WHERE c.id = $1",
			 SPI_OK_SELECT, 4, types, values, NULL);
}

char *
certificate_error_json(const char *error)
{
	StringInfoData json;
	int			len = strlen(error);
	int			cut = pg_mbcliplen(error, len, ERROR_MAX);

	initStringInfo(&json);
	appendStringInfoString(&json, "{\"error\": ");
	escape_json(&json, psprintf("%.*s%s", cut, error, cut < len ? "..." : ""));
	appendStringInfoChar(&json, '}');
	return json.data;
}
