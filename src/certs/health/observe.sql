-- certs, observed: what mlint.certificate_health() says, and challenges.

INSERT INTO mlint.health_check (room, name, on_standby, findings) VALUES
('certs', 'certificates', true, $$
	SELECT f.level, format('%s "%s": %s', f.kind, f.name, f.why), f.remedy
	FROM mlint.certificate_finding f
	UNION ALL
	SELECT o.* FROM mlint.job_off('certificates') o
	WHERE EXISTS (SELECT FROM mlint.acme_account WHERE status <> 'deactivated')
	UNION ALL
	SELECT o.* FROM mlint.job_off('certificate_expiry') o
	WHERE EXISTS (SELECT FROM mlint.certificate)
	UNION ALL
	SELECT o.* FROM mlint.job_off('certificate_targets') o
	WHERE EXISTS (SELECT FROM mlint.certificate_target)
	UNION ALL
	SELECT o.* FROM mlint.job_off('certificate_watches') o
	WHERE EXISTS (SELECT FROM mlint.certificate_watch)$$),

('certs', 'challenges', true, $$
	SELECT 2, format('certificates (%s) are to be proved by the gateway, and mlint.gateway_listen is empty', c.name),
		'Set it to where http://<name>/.well-known/acme-challenge/ leads, or name another solver.'
	FROM (SELECT c.name FROM mlint.certificate c WHERE c.challenge = 'http-01'
		AND c.solver IS NULL AND c.auto_renew ORDER BY c.name LIMIT 1) c
	WHERE current_setting('mlint.gateway_listen') = ''
	UNION ALL
	SELECT 1, format('the record %s at DNS provider "%s" could not be removed, and that was given up: %s',
			h.made ->> 'record', h.solver, h.solver_error),
		'Put right what the error names, or remove it there by hand; then mlint.dns_provider_alter() has it tried again.'
	FROM mlint.acme_challenge h
	WHERE h.presence = 'removing' AND h.next_at = 'infinity'
	UNION ALL
	SELECT 1, format('%s proves names, and fails: %s', coalesce('solver "' || h.solver || '"', 'the gateway'), h.error),
		'Put right what the error names; for a DNS provider mlint.dns_provider_test() tries it.'
	FROM (SELECT h.solver, max(h.solver_error) AS error FROM mlint.acme_challenge h
		WHERE h.presence IN ('wanted', 'presenting', 'removing') AND h.next_at < 'infinity'
			AND h.attempts >= 3
		GROUP BY h.solver) h
	UNION ALL
	SELECT o.* FROM mlint.job_off('certificate_challenges') o
	WHERE EXISTS (SELECT FROM mlint.acme_challenge
		WHERE presence IN ('wanted', 'presenting', 'checking', 'removing'))$$);

-- One by one those that end first, a thousand at most.
INSERT INTO mlint.metric_source (room, name, on_standby, labels, query) VALUES
('certs', 'certificates', true, '{certificate}', $$
	SELECT c.name AS certificate, date_part('epoch', v.not_after) AS not_after,
		c.attempts
	FROM mlint.certificate c
	LEFT JOIN mlint.certificate_version v ON v.id = c.version_id
	ORDER BY v.not_after NULLS FIRST, c.name LIMIT 1000$$),
('certs', 'certificate_states', true, '{state}', $$
	SELECT s.state, count(c.id) AS certificates
	FROM unnest('{REQUESTED,ISSUING,ISSUED,ACTIVE,RENEWING,FAILED,REVOKED,EXPIRED}'::text[]) s (state)
	LEFT JOIN mlint.certificate c ON c.state = s.state
	GROUP BY s.state ORDER BY s.state$$),
('certs', 'acme_accounts', true, '{account}', $$
	SELECT a.name AS account, a.status = 'valid' AS valid, a.max_orders,
		(SELECT count(*) FROM mlint.acme_order o WHERE o.account_id = a.id
			AND o.ordered_at > clock_timestamp() - a.max_orders_per) AS orders,
		(SELECT count(*) FROM mlint.acme_order o WHERE o.account_id = a.id
			AND o.finished_at IS NULL) AS open
	FROM mlint.acme_account a ORDER BY a.name$$),
('certs', 'certificate_targets', true, '{state}', $$
	SELECT s.state, count(t.state) AS targets
	FROM unnest('{waiting,pending,failing,serving}'::text[]) s (state)
	LEFT JOIN mlint.certificate_targets t ON t.state = s.state
	GROUP BY s.state ORDER BY s.state$$),
('certs', 'certificate_watches', true, '{state}', $$
	SELECT s.state, count(w.state) AS watches
	FROM unnest('{waiting,agrees,differs,unreachable}'::text[]) s (state)
	LEFT JOIN mlint.certificate_watches w ON w.state = s.state
	GROUP BY s.state ORDER BY s.state$$);
INSERT INTO mlint.metric (source, "column", name, type, help) VALUES
('certificates', 'not_after', 'mlint_certificate_not_after_timestamp_seconds', 'gauge', 'When the certificate in use expires; of the 1000 that do first'),
('certificates', 'attempts', 'mlint_certificate_failed_orders', 'gauge', 'Orders in a row that failed'),
('certificate_states', 'certificates', 'mlint_certificates', 'gauge', 'Certificates in each state'),
('acme_accounts', 'valid', 'mlint_acme_account_valid', 'gauge', 'Whether the account is registered'),
('acme_accounts', 'max_orders', 'mlint_acme_account_orders_limit', 'gauge', 'New orders that its limit allows in its window'),
('acme_accounts', 'orders', 'mlint_acme_account_orders_lately', 'gauge', 'New orders in the last such window'),
('acme_accounts', 'open', 'mlint_acme_account_orders_open', 'gauge', 'Orders that are under way'),
('certificate_targets', 'targets', 'mlint_certificate_targets', 'gauge', 'Places that certificates are pushed to, in each state'),
('certificate_watches', 'watches', 'mlint_certificate_watches', 'gauge', 'Servers that are looked at, in each state');

