-- certs/health: what is wrong with certificates, and what to do about it.

-- Each thing that can be wrong is a row: of what, how bad, why, and what to do.
-- What time is left is measured by the lifetime, so that a certificate of six
-- days is not critical all its life.
CREATE VIEW mlint.certificate_finding AS
WITH c AS (
	SELECT c.*, v.not_after, v.not_after - v.not_before AS lifetime,
		v.revoked_at, v.revoke_at, v.activated_at, v.fingerprint, v.key_version, v.key_gone,
		v.not_after - pg_catalog.clock_timestamp() AS remains,
		coalesce(a.status = 'failed', false) AS account_refused,
		pg_catalog.clock_timestamp() AS now
	FROM mlint.certificate c
	LEFT JOIN mlint.acme_account a ON a.id = c.account_id
	LEFT JOIN mlint.certificate_version v ON v.id = c.version_id
), near AS (
	SELECT c.*,
		remains <= least('30 days'::interval, lifetime / 3) AS is_near,
		remains <= least('7 days'::interval, lifetime / 6) AS is_close,
		remains <= '0' AS is_over
	FROM c
)
SELECT 'certificate' AS kind, c.name, c.id AS certificate_id, f.level, f.why, f.remedy
FROM near c, LATERAL (
	SELECT 2 AS level, 'it has expired' AS why,
		CASE WHEN c.account_id IS NULL THEN 'Import its successor with mlint.certificate_import().'
			ELSE 'Look at last_error in mlint.certificates; mlint.certificate_renew() tries again at once.' END AS remedy
	WHERE c.is_over
	UNION ALL
	SELECT 2, 'it was revoked',
		'mlint.certificate_renew() has another issued; mlint.certificate_drop() forgets it.'
	WHERE c.revoked_at IS NOT NULL
	UNION ALL
	SELECT CASE WHEN c.version_id IS NULL OR c.is_over OR c.is_close THEN 2 ELSE 1 END,
		CASE WHEN c.next_version_id IS NOT NULL
			THEN 'the next certificate was issued, and is not in use yet: '
			WHEN c.version_id IS NULL THEN 'it could not be issued: '
			ELSE 'it could not be renewed: ' END || c.error,
		CASE WHEN c.next_version_id IS NOT NULL
			THEN 'mlint.certificate_targets tells which target fails; it is tried again by itself.'
			WHEN c.due_at IS NULL
			THEN 'Put right what the error names, and call mlint.certificate_renew().'
			ELSE 'Put right what the error names; it is tried again by itself, or at once by mlint.certificate_renew().' END
	WHERE c.error IS NOT NULL
	UNION ALL
	SELECT CASE WHEN c.is_close THEN 2 ELSE 1 END,
		pg_catalog.format('it expires in %s, and nobody renews it',
			CASE WHEN c.remains >= '1 day' THEN pg_catalog.floor(EXTRACT(epoch FROM c.remains) / 86400) || ' days'
				ELSE pg_catalog.date_trunc('second', c.remains)::text END),
		CASE WHEN c.account_id IS NULL THEN 'Import its successor with mlint.certificate_import().'
			ELSE 'Call mlint.certificate_renew(); its auto_renew is off.' END
	WHERE c.is_near AND NOT c.is_over AND NOT c.auto_renew
		AND c.next_version_id IS NULL
	UNION ALL
	SELECT CASE WHEN c.is_close THEN 2 ELSE 1 END,
		'its renewal waits for the limits of its account',
		'mlint.acme_accounts tells how many orders were made lately; raise max_orders if the authority allows more.'
	WHERE c.due_at < c.now - least('1 day'::interval, c.lifetime / 20)
		AND NOT c.account_refused
	UNION ALL
	SELECT CASE WHEN c.version_id IS NULL OR c.is_close OR c.is_over THEN 2 ELSE 1 END,
		'it waits for its account, which could not be registered',
		'See the account.'
	WHERE c.due_at <= c.now AND c.account_refused
	UNION ALL
	SELECT CASE WHEN c.is_close OR c.is_over THEN 2 ELSE 1 END,
		pg_catalog.format('its order is %s since %s', o.state,
			pg_catalog.to_char(o.created_at, 'YYYY-MM-DD HH24:MI')),
		'mlint.certificate_orders tells how far it is, and mlint.jobs whether the job certificates runs.'
	FROM mlint.acme_order o
	WHERE o.certificate_id = c.id AND o.finished_at IS NULL
		AND o.created_at < c.now - '1 hour'::interval
	UNION ALL
	SELECT 1, 'its revocation was asked for, and is not done yet',
		'mlint.acme_accounts tells whether its authority can be reached.'
	WHERE c.revoked_at IS NULL AND c.revoke_at < c.now - '1 hour'::interval
	UNION ALL
	SELECT 2, pg_catalog.format('version %s of secret "%s", its key, is gone', c.key_version, c.key_secret),
		CASE WHEN c.account_id IS NULL THEN 'Import it again, with its key.'
			ELSE 'Call mlint.certificate_renew(), which makes another.' END
	WHERE c.version_id IS NOT NULL AND NOT EXISTS (SELECT FROM mlint.secret s
		JOIN mlint.secret_version k ON k.secret_id = s.id
		WHERE s.name = c.key_secret AND k.version = c.key_version
			AND k.destroyed_at IS NULL)
	UNION ALL
	SELECT CASE WHEN has.not_after <= c.now THEN 2 ELSE 1 END,
		pg_catalog.format('target "%s"%s %s', t.name,
			CASE WHEN r.region <> '' THEN ' in ' || r.region ELSE '' END,
			CASE WHEN r.error IS NOT NULL THEN 'cannot be reached: ' || r.error
				ELSE 'has an old certificate' END),
		'Put right what the error names in mlint.certificate_targets; it is tried again by itself.'
	FROM mlint.certificate_target t
	JOIN mlint.certificate_region r ON r.target_id = t.id
	LEFT JOIN mlint.certificate_version has ON has.id = r.version_id
	LEFT JOIN mlint.certificate_version wanted ON wanted.id = c.version_id
	WHERE t.certificate_id = c.id AND c.version_id IS NOT NULL
		AND (r.error IS NOT NULL
			OR (r.version_id IS DISTINCT FROM c.version_id
				AND r.version_id IS DISTINCT FROM c.next_version_id
				AND wanted.activated_at < c.now - '1 hour'::interval))
	UNION ALL
	SELECT CASE WHEN w.served_not_after <= c.now + '1 day'::interval THEN 2 ELSE 1 END,
		pg_catalog.format('%s:%s serves another certificate, with serial %s, until %s',
			w.host, w.port, w.served_serial,
			pg_catalog.to_char(w.served_not_after, 'YYYY-MM-DD')),
		'See that the server has the one in use, and has loaded it.'
	FROM mlint.certificate_watch w
	WHERE w.certificate_id = c.id AND c.version_id IS NOT NULL
		AND w.error IS NULL AND w.served_fingerprint <> c.fingerprint
		-- A look before that may have seen it on its way.
		AND w.checked_at >= coalesce(c.activated_at + '5 minutes', '-infinity')
	UNION ALL
	SELECT 1, pg_catalog.format('%s:%s cannot be looked at: %s', w.host, w.port, w.error),
		'See that the server runs, and can be reached from here.'
	FROM mlint.certificate_watch w
	WHERE w.certificate_id = c.id AND w.error IS NOT NULL
) f
UNION ALL
SELECT 'account', a.name, NULL, f.level, f.why, f.remedy
FROM mlint.acme_account a, LATERAL (
	SELECT 2 AS level, 'it could not be registered: ' || coalesce(a.error, 'no reason is known') AS why,
		'Create it again, with what is right; it is also tried again by itself.' AS remedy
	WHERE a.status = 'failed'
	UNION ALL
	SELECT 2, 'it was deactivated, and certificates are to be renewed with it',
		'Have them issued with another account.'
	WHERE a.status IN ('deactivating', 'deactivated')
		AND EXISTS (SELECT FROM mlint.certificate c
			WHERE c.account_id = a.id AND c.auto_renew)
	UNION ALL
	SELECT 1, a.error, 'Put right what the error names; it is tried again by itself.'
	WHERE a.status <> 'failed' AND a.error IS NOT NULL
	UNION ALL
	SELECT 1, 'its authority has asked to be left alone until '
			|| pg_catalog.to_char(a.not_before, 'YYYY-MM-DD HH24:MI'),
		'Nothing; orders go on then. If it comes often, lower max_orders.'
	WHERE a.not_before > pg_catalog.clock_timestamp()
) f;
COMMENT ON VIEW mlint.certificate_finding IS 'Behind mlint.certificate_health(): all that is wrong';
COMMENT ON COLUMN mlint.certificate_finding.kind IS 'certificate or account';
COMMENT ON COLUMN mlint.certificate_finding.name IS 'Its name';
COMMENT ON COLUMN mlint.certificate_finding.certificate_id IS 'Id of the certificate';
COMMENT ON COLUMN mlint.certificate_finding.level IS '1: warning, 2: critical';
COMMENT ON COLUMN mlint.certificate_finding.why IS 'What is wrong';
COMMENT ON COLUMN mlint.certificate_finding.remedy IS 'What to do about it';

CREATE FUNCTION mlint.certificate_health(OUT kind text, OUT name text,
	OUT certificate_id uuid, OUT status text, OUT why text, OUT remedy text)
RETURNS SETOF record
LANGUAGE sql VOLATILE SECURITY DEFINER PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp AS $$
	WITH thing AS (
		SELECT 'certificate' AS kind, c.name, c.id FROM mlint.certificate c
		UNION ALL
		SELECT 'account', a.name, NULL FROM mlint.acme_account a
	), found AS (
		SELECT f.kind, f.name, max(f.level) AS level,
			string_agg(f.why, '; ' ORDER BY f.level DESC, f.why) AS why,
			(array_agg(f.remedy ORDER BY f.level DESC, f.why))[1] AS remedy
		FROM mlint.certificate_finding f GROUP BY f.kind, f.name
	)
	SELECT t.kind, t.name, t.id,
		CASE f.level WHEN 2 THEN 'critical' WHEN 1 THEN 'warning' ELSE 'ok' END,
		f.why, f.remedy
	FROM thing t LEFT JOIN found f ON f.kind = t.kind AND f.name = t.name
	ORDER BY coalesce(f.level, 0) DESC, t.kind, t.name
$$;
COMMENT ON FUNCTION mlint.certificate_health() IS
	'Each certificate and account: ok, warning or critical, why, and what to do; the worst first';
REVOKE ALL ON FUNCTION mlint.certificate_health() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION mlint.certificate_health() TO mlint_reader;
