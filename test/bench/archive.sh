# Archiving sessions of realistic chat: archive_batch, committed, beside
# `zstd -3 | openssl enc -aes-256-ctr` over the same documents in one file, in
# turns, medians; and what the archives come to, without and with a dictionary.
ARCHIVE_SESSIONS=${ARCHIVE_SESSIONS:-1000}
ARCHIVE_BYTES=${ARCHIVE_BYTES:-100000}
ARCHIVE_ROUNDS=${ARCHIVE_ROUNDS:-5}

# A database of its own: the corpus wants an extension that was just created.
archive_sql() { PGDATABASE=bench_archive sql "$@"; }

# archive_all: seconds that it takes to archive all sessions and commit.
archive_all()
{
	archive_sql -c CHECKPOINT >/dev/null
	t0=$(date +%s.%N)
	archived=$(archive_sql -c "SELECT count(archive_id) FROM mlint.archive_batch(
		(SELECT array_agg(session_id ORDER BY id) FROM mlint.session))")
	t1=$(date +%s.%N)
	[ "$archived" = "$ARCHIVE_SESSIONS" ] || die "$archived of $ARCHIVE_SESSIONS sessions were archived"
	calc "$t1 - $t0" %.3f
}

restore_all()
{
	archive_sql -c "SELECT count(mlint.archive_restore(id)) FROM mlint.archives" \
		-c "VACUUM ANALYZE mlint.message, mlint.session, mlint.archive, mlint.archive_chunk" >/dev/null
}

# pipe_all: seconds that the pipe takes over the documents.
pipe_all()
{
	t0=$(date +%s.%N)
	zstd -q -3 -c "$work/documents" |
		openssl enc -aes-256-ctr -K "$archive_key" -iv 000102030405060708090a0b0c0d0e0f \
			>"$work/documents.enc"
	t1=$(date +%s.%N)
	calc "$t1 - $t0" %.3f
}

archive_ratio() { archive_sql -c "SELECT round(sum(stored_bytes) / sum(bytes), 3) FROM mlint.archives"; }

measure_archive()
{
	createdb bench_archive
	archive_key=000102030405060708090a0b0c0d0e0f000102030405060708090a0b0c0d0e0f
	archive_sql -c "CREATE EXTENSION mlint" >/dev/null
	python3 "$top/test/corpus/chat.py" --sessions "$ARCHIVE_SESSIONS" --bytes "$ARCHIVE_BYTES" |
		archive_sql >/dev/null
	archive_all >/dev/null
	archive_sql -c "SELECT d FROM (SELECT id FROM mlint.archive ORDER BY id OFFSET 0) a, mlint.archive_document(a.id) d" \
		>"$work/documents"
	mb=$(calc "$(archive_sql -c "SELECT sum(bytes) FROM mlint.archives") / 1000000" %.1f)
	without=$(archive_ratio)
	: >"$work/archive.mlint"
	: >"$work/archive.limit"
	for round in $(seq "$ARCHIVE_ROUNDS"); do
		restore_all
		pipe_all >>"$work/archive.limit"
		archive_all >>"$work/archive.mlint"
	done
	limit=$(calc "$mb / $(median <"$work/archive.limit")" %.0f)
	mlint=$(calc "$mb / $(median <"$work/archive.mlint")" %.0f)
	row "\`archive_batch\`, $ARCHIVE_SESSIONS sessions of $((ARCHIVE_BYTES / 1000)) kB" "≥ 0.4" \
		"$limit MB/s" "$mlint MB/s" "$(calc "$mlint / $limit")"
	row "archived size" "≤ 0.35" "$mb MB" "$(calc "$mb * $without" %.1f) MB" "$without"

	restore_all
	archive_sql -c "SELECT mlint.archive_dictionary_train()" >/dev/null
	seconds=$(archive_all)
	row "archived size with a dictionary, at $(calc "$mb / $seconds" %.0f) MB/s" "≤ 0.25" \
		"$mb MB" "$(calc "$mb * $(archive_ratio)" %.1f) MB" "$(archive_ratio)"
	dropdb bench_archive
}
