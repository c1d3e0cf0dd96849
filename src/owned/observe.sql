-- owned, observed: what has lost its owner does not work. Of each kind how many,
-- since some have names that are not for everybody; a secret works without.

INSERT INTO mlint.health_check (room, name, on_standby, findings) VALUES
('owned', 'owners', true, $$
	SELECT 2, format('the owner is gone of: %s (%s)', o.kind, count(*)),
		'mlint.owned tells administrators what it is; mlint.owned_reassign(NULL, new_role) gives it to another.'
	FROM mlint.owned o WHERE o.kind <> 'secret' AND o.role IS NULL
	GROUP BY o.kind$$);

