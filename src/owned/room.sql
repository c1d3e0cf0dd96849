-- owned: what belongs to which role, in all rooms.

CREATE VIEW mlint.owned AS
SELECT o.kind, o.name, nullif(o.role::text, '') AS role
FROM (SELECT 'destination' AS kind, d.name, d.owner AS role
	FROM mlint.destination d WHERE d.dropped_at IS NULL
	UNION ALL
	SELECT 'secret', g.pattern, g.role FROM mlint.secret_grant g
	WHERE g.privilege = 'owner'
	UNION ALL
	SELECT 'rotation', s.name, r.owner
	FROM mlint.secret_rotation r JOIN mlint.secret s ON s.id = r.secret_id
	UNION ALL
	SELECT 'mount', m.path, m.created_by FROM mlint.secret_mount m
	WHERE m.dropped_at IS NULL
	UNION ALL
	SELECT 'acme account', a.name, a.created_by FROM mlint.acme_account a
	UNION ALL
	SELECT 'certificate', c.name, c.created_by FROM mlint.certificate c
	UNION ALL
	SELECT 'dns provider', p.name, p.created_by FROM mlint.dns_provider p
	UNION ALL
	SELECT 'certificate target', c.name || ': ' || t.name, t.created_by
	FROM mlint.certificate_target t
	JOIN mlint.certificate c ON c.id = t.certificate_id
	UNION ALL
	SELECT 'challenge', h.identifier, h.owner FROM mlint.acme_challenge h
	WHERE h.owner IS NOT NULL) o;
COMMENT ON VIEW mlint.owned IS 'What belongs to a role: as that role its functions run, and with its privileges it reads secrets';
COMMENT ON COLUMN mlint.owned.kind IS 'What it is';
COMMENT ON COLUMN mlint.owned.name IS 'Its name';
COMMENT ON COLUMN mlint.owned.role IS 'The role; null when that is gone';

CREATE FUNCTION mlint.owned_reassign(role text, new_role text) RETURNS bigint
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'mlint_owned_reassign';
COMMENT ON FUNCTION mlint.owned_reassign(text, text) IS
	'Give what belongs to a role in mlint to another, as REASSIGN OWNED does elsewhere; null: what belongs to roles that are gone. Returns how much that was';

REVOKE ALL ON FUNCTION mlint.owned_reassign(text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION mlint.owned_reassign(text, text) TO mlint_admin;
GRANT SELECT ON mlint.owned TO mlint_admin;
