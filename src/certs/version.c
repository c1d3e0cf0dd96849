/*
 * version.c
 *		What was issued or imported: its rows, and its keys.
 *
 * The key of a version is a version of the certificate's secret, which belongs
 * to whoever asked for the certificate. It becomes the current one with the
 * certificate, not before, so that who reads both reads what belongs together.
 */
#include "postgres.h"

#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "certs/lifecycle.h"
#include "common/compat.h"
#include "common/owner.h"
#include "common/role.h"
#include "miscadmin.h"
#include "secrets/store.h"
#include "utils/builtins.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

bool
version_read(int64 id, CertificateVersion *v)
{
	static SPIPlanPtr plan = NULL;
	OwnerScope	scope;
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(id)};
	bool		isnull;
	bool		found;

	memset(v, 0, sizeof(*v));
	v->id = id;
	owner_begin(&scope);
	owner_run(&plan,
			  "SELECT v.certificate_id, v.key_version,"
			  " coalesce(v.revoke_reason, -1), v.not_before, v.not_after,"
			  " v.issued_at, coalesce((SELECT p.issued_at"
			  " FROM mlint.certificate_version p"
			  " WHERE p.certificate_id = v.certificate_id AND p.id < v.id"
			  " ORDER BY p.id DESC LIMIT 1), '-infinity'),"
			  " v.ari_start, v.ari_end, v.key_compromised"
			  " FROM mlint.certificate_version v WHERE v.id = $1",
			  SPI_OK_SELECT, 1, types, values, NULL);
	found = SPI_processed > 0;
	if (found)
	{
		v->certificate = *DatumGetUUIDP(owner_column(1, &isnull));
		v->key_version = DatumGetInt32(owner_column(2, &isnull));
		v->revoke_reason = DatumGetInt32(owner_column(3, &isnull));
		v->not_before = DatumGetTimestampTz(owner_column(4, &isnull));
		v->not_after = DatumGetTimestampTz(owner_column(5, &isnull));
		v->issued_at = DatumGetTimestampTz(owner_column(6, &isnull));
		v->before_issued_at = DatumGetTimestampTz(owner_column(7, &isnull));
		v->ari_start = DatumGetTimestampTz(owner_column(8, &isnull));
		v->ari_end = DatumGetTimestampTz(owner_column(9, &isnull));
		v->key_compromised = DatumGetBool(owner_column(10, &isnull));
	}
	owner_end(&scope);
	return found;
}

static Datum
text_array(char *const *texts, int n)
{
	Datum	   *elements = palloc((n + 1) * sizeof(Datum));

	for (int i = 0; i < n; i++)
		elements[i] = CStringGetTextDatum(texts[i]);
	return PointerGetDatum(construct_array(elements, n, TEXTOID, -1, false,
										   TYPALIGN_INT));
}

int64
version_insert(const Certificate *c, const Chain *chain, int key_version)
{
	static SPIPlanPtr plan = NULL;
	OwnerScope	scope;
	Oid			types[] = {UUIDOID, TEXTOID, BYTEAOID, TEXTOID, TEXTOID,
		TEXTARRAYOID, TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TEXTOID,
	INT4OID, TEXTOID};
	Datum		values[12];
	char		nulls[12];
	bytea	   *fingerprint = palloc(VARHDRSZ + sizeof(chain->fingerprint));
	int64		id;
	bool		isnull;

	SET_VARSIZE(fingerprint, VARHDRSZ + sizeof(chain->fingerprint));
	memcpy(VARDATA(fingerprint), chain->fingerprint,
		   sizeof(chain->fingerprint));
	memset(nulls, ' ', sizeof(nulls));
	values[0] = UUIDPGetDatum(&c->id);
	values[1] = CStringGetTextDatum(chain->serial);
	values[2] = PointerGetDatum(fingerprint);
	values[3] = CStringGetTextDatum(chain->issuer);
	values[4] = CStringGetTextDatum(chain->subject);
	values[5] = text_array(chain->names, chain->nnames);
	values[6] = CStringGetTextDatum(chain->key_type);
	values[7] = TimestampTzGetDatum(chain->not_before);
	values[8] = TimestampTzGetDatum(chain->not_after);
	values[9] = CStringGetTextDatum(chain->pem);
	values[10] = Int32GetDatum(key_version);
	values[11] = chain->ari_id ? CStringGetTextDatum(chain->ari_id) : 0;
	nulls[11] = chain->ari_id ? ' ' : 'n';
	owner_begin(&scope);
	owner_run(&plan,
			  "INSERT INTO mlint.certificate_version (certificate_id, serial,"
			  " fingerprint, issuer, subject, names, key_type, not_before,"
			  " not_after, chain, key_version, ari_id)"
			  " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)"
			  " RETURNING id", SPI_OK_INSERT_RETURNING, 12, types, values,
			  nulls);
	id = DatumGetInt64(owner_column(1, &isnull));
	owner_end(&scope);
	return id;
}

/*
 * As the owner, if there still is one: a new secret belongs to whoever stores
 * its first version.
 */
int
version_store_key(const char *secret, const char *name, const char *key,
				  Oid owner)
{
	SecretAbout about = {
		.type = "tls_certificate",
		.description = psprintf("Private keys of certificate %s", name)
	};
	Oid			user;
	int			context;
	int			version;

	GetUserIdAndSecContext(&user, &context);
	if (role_exists(owner))
		SetUserIdAndSecContext(owner,
							   context | SECURITY_LOCAL_USERID_CHANGE);
	version = store_put_version(secret, key, strlen(key), &about, false);
	SetUserIdAndSecContext(user, context);
	return version;
}

void
version_discard_key(const Certificate *c, int key_version)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {UUIDOID, TEXTOID, INT4OID};
	Datum		values[] = {UUIDPGetDatum(&c->id),
	CStringGetTextDatum(c->key_secret), Int32GetDatum(key_version)};
	bool		unused;

	unused = owner_do(&plan,
					  "SELECT FROM mlint.secret s JOIN mlint.secret_version k"
					  " ON k.secret_id = s.id AND k.version = $3"
					  " WHERE s.name = $2 AND k.destroyed_at IS NULL"
					  " AND NOT EXISTS (SELECT FROM mlint.certificate_version v"
					  " WHERE v.certificate_id = $1 AND v.key_version = $3"
					  " AND NOT v.key_gone)",
					  SPI_OK_SELECT, 3, types, values, NULL);
	if (unused)
		store_destroy(c->key_secret, key_version);
}
