-- expiry: what is done when a retention period ends, and erasure on request.

-- ---- what is held stays ----

CREATE TRIGGER hold_guard BEFORE DELETE ON mlint.archive
	FOR EACH ROW EXECUTE FUNCTION mlint.hold_guard();
CREATE TRIGGER hold_guard_update AFTER UPDATE ON mlint.archive
	FOR EACH ROW WHEN (NOT mlint.owner_scope_open())
	EXECUTE FUNCTION mlint.hold_guard();
CREATE TRIGGER hold_guard_truncate BEFORE TRUNCATE ON mlint.archive
	FOR EACH STATEMENT EXECUTE FUNCTION mlint.hold_guard();
CREATE TRIGGER hold_guard AFTER UPDATE OR DELETE ON mlint.archive_chunk
	FOR EACH ROW WHEN (NOT mlint.owner_scope_open())
	EXECUTE FUNCTION mlint.hold_guard();
CREATE TRIGGER hold_guard_truncate BEFORE TRUNCATE ON mlint.archive_chunk
	FOR EACH STATEMENT EXECUTE FUNCTION mlint.hold_guard();
ALTER TABLE mlint.archive ENABLE ALWAYS TRIGGER hold_guard,
	ENABLE ALWAYS TRIGGER hold_guard_update,
	ENABLE ALWAYS TRIGGER hold_guard_truncate;
ALTER TABLE mlint.archive_chunk ENABLE ALWAYS TRIGGER hold_guard,
	ENABLE ALWAYS TRIGGER hold_guard_truncate;
