/*
 * dictionary_train.c
 *		Making dictionaries of what many sessions have in common.
 *
 * A dictionary outlives the sessions that it was made from, and must not keep
 * what one person said. So nothing is in it that is not, as it stands, in at
 * least MIN_SESSIONS sessions of the sample, which never has so many with one
 * and the same metadata: system prompts, tool definitions,
 * articles that are looked up often, phrases, the form of the documents.
 *
 * How that is found. Each place of a document where a hash of the next WINDOW
 * bytes has its low bits zero is an anchor; the same text has the same anchors.
 * For each anchor it is counted in how many sessions it is. A stretch whose
 * anchors are all frequent is a candidate, and is searched for, whole, in the
 * sessions of one of its anchors. If it is not in all of them, each of its
 * halves is tried. The hash is only for speed: what is taken was compared.
 *
 * Frequent stretches go to the end, where zstd reaches them most cheaply. zstd
 * adds statistics of symbols (ZDICT_finalizeDictionary), which have no words in
 * them. A fifth of the sessions is held back, and says whether it pays.
 */
#include "postgres.h"

#include <zdict.h>

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/argument.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/memutils.h"

#include "archive/archive_row.h"
#include "archive/dictionary.h"
#include "archive/document.h"
#include "common/audit.h"
#include "common/compat.h"
#include "common/owner.h"
#include "common/rows.h"
#include "common/trial.h"
#include "secrets/datakey.h"

PG_FUNCTION_INFO_V1(mlint_archive_dictionary_train);
PG_FUNCTION_INFO_V1(mlint_archive_dictionary_drop);

#define MIN_SESSIONS	5		/* that a stretch must be in */
#define LOOKED_AT		10		/* sessions for each that is wanted */
#define LEAST_SAMPLES	20
#define MOST_SAMPLES	2000
#define SAMPLE_BYTES	(128 * 1024)	/* of one session */
#define ALL_BYTES		(96 * 1024 * 1024)	/* of all */
#define HELD_BACK		5		/* every which one */
#define CONTENT_BYTES	(1024 * 1024)
#define CONTENT_LEAST	1024	/* less is not worth a try */
#define HEADER_BYTES	4096	/* for zstd's statistics */
#define PAYS			0.95	/* of the size without */

#define WINDOW			24
#define ANCHOR_MASK		7		/* one place of eight */
#define LEAST_STRETCH	32
#define TABLE_BITS		22
#define HASH_FACTOR		UINT64CONST(0x9E3779B185EBCA87)

typedef struct Sample
{
	char	   *data;
	size_t		len;
} Sample;

/* Where an anchor was seen: how often, and the first sessions. */
typedef struct Anchor
{
	uint32		tag;			/* more of its hash */
	uint16		count;			/* of sessions; 0: a free place */
	uint16		last;			/* that was counted */
	uint16		first[MIN_SESSIONS];
	bool		taken;			/* it is in the dictionary */
} Anchor;

typedef struct Stretch
{
	const char *data;
	size_t		len;
	double		count;			/* sessions, on average of its anchors */
} Stretch;

typedef struct Training
{
	Sample	   *samples;
	int			nsamples;
	Anchor	   *table;
	Stretch    *stretches;
	int			nstretches;
	int			room;
} Training;

/* ---- samples ---- */

/* The beginning of a document is enough of it. */
static void
take_sample(const char *data, size_t len, void *arg)
{
	StringInfo	buffer = arg;

	len = Min(len, SAMPLE_BYTES - buffer->len);
	appendBinaryStringInfo(buffer, data, (int) len);
}

/* One session's document. False: it is gone meanwhile, or cannot be written. */
static bool
read_sample(const char *session_id, int64 session, Sample *sample)
{
	StringInfoData buffer;
	DocumentFacts facts;
	Trial		trial;
	volatile bool done = false;

	initStringInfo(&buffer);
	trial_begin(&trial);
	PG_TRY();
	{
		document_write(session_id, session, false, take_sample, &buffer,
					   &facts);
		trial_end(&trial);
		done = true;
	}
	PG_CATCH();
	{
		ErrorData  *error = trial_failed(&trial);

		if (ERRCODE_TO_CATEGORY(error->sqlerrcode) ==
			ERRCODE_OPERATOR_INTERVENTION)
			ReThrowError(error);
	}
	PG_END_TRY();
	sample->data = buffer.data;
	sample->len = buffer.len;
	return done;
}

/*
 * The sessions that were active last. Of those with the same metadata, which
 * says whose they are, there are fewer than a stretch must be in.
 */
static Sample *
read_samples(int wanted, int *n)
{
	MemoryContext caller = CurrentMemoryContext;
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(wanted)};
	Sample	   *samples = palloc(sizeof(Sample) * wanted);
	SPITupleTable *rows;
	uint64		nrows;
	size_t		bytes = 0;

	*n = 0;
	if (SPI_execute_with_args("SELECT session_id, id FROM (SELECT i.*,"
							  " row_number() OVER (PARTITION BY i.metadata"
							  " ORDER BY i.active_at DESC, i.id DESC) AS n"
							  " FROM (SELECT session_id, id, active_at, metadata"
							  " FROM mlint.session WHERE status <> 'archived'"
							  " ORDER BY active_at DESC, id DESC"
							  " LIMIT $1 * " CppAsString2(LOOKED_AT) ") i) s"
							  " WHERE n < " CppAsString2(MIN_SESSIONS)
							  " OR metadata = '{}'"
							  " ORDER BY active_at DESC, id DESC LIMIT $1",
							  1, types, values, NULL, true,
							  0) != SPI_OK_SELECT)
		elog(ERROR, "could not read mlint.session");
	rows = SPI_tuptable;
	nrows = SPI_processed;
	MemoryContextSwitchTo(caller);
	for (uint64 i = 0; i < nrows && bytes < ALL_BYTES; i++)
	{
		bool		isnull;

		CHECK_FOR_INTERRUPTS();
		if (read_sample(SPI_getvalue(rows->vals[i], rows->tupdesc, 1),
						DatumGetInt64(SPI_getbinval(rows->vals[i],
													rows->tupdesc, 2,
													&isnull)),
						&samples[*n]))
			bytes += samples[(*n)++].len;
	}
	return samples;
}

/* ---- anchors ---- */

static inline uint64
hash_window(const char *p)
{
	uint64		parts[WINDOW / sizeof(uint64)];
	uint64		h = 0;

	memcpy(parts, p, WINDOW);
	for (int i = 0; i < lengthof(parts); i++)
	{
		h = (h ^ parts[i]) * HASH_FACTOR;
		h ^= h >> 32;
	}
	return h;
}

/* The anchor's place: its own, or a free one; NULL: there is none near. */
static Anchor *
anchor_place(Anchor *table, uint64 hash)
{
	uint32		tag = (uint32) (hash >> 8);
	uint32		at = (uint32) (hash >> (64 - TABLE_BITS));
	Anchor	   *free = NULL;

	for (int i = 0; i < 16; i++)
	{
		Anchor	   *anchor = &table[(at + i) & ((1 << TABLE_BITS) - 1)];

		if (anchor->count == 0)
			free = free ? free : anchor;
		else if (anchor->tag == tag)
			return anchor;
	}
	if (free)
		free->tag = tag;
	return free;
}

/*
 * Make room: forget what has been in one session only. What is frequent comes
 * again before the next time.
 */
static void
forget_rare(Anchor *table)
{
	for (int i = 0; i < 1 << TABLE_BITS; i++)
	{
		if (table[i].count == 1)
			table[i].count = 0;
	}
}

static void
count_anchors(Training *training)
{
	int			used = 0;		/* places, since the last time */

	for (int s = 0; s < training->nsamples; s++)
	{
		const Sample *sample = &training->samples[s];

		CHECK_FOR_INTERRUPTS();
		if (used > (1 << TABLE_BITS) / 2)
		{
			forget_rare(training->table);
			used = 0;
		}
		for (size_t i = 0; i + WINDOW <= sample->len; i++)
		{
			uint64		hash = hash_window(sample->data + i);
			Anchor	   *anchor;

			if ((hash & ANCHOR_MASK) != 0)
				continue;
			anchor = anchor_place(training->table, hash);
			if (anchor == NULL || (anchor->count > 0 && anchor->last == s))
				continue;
			used += anchor->count == 0;
			if (anchor->count < MIN_SESSIONS)
				anchor->first[anchor->count] = s;
			anchor->last = s;
			anchor->count++;
		}
	}
}

/* The frequent anchor at this place that is not taken, or NULL. */
static Anchor *
frequent_anchor(const Training *training, const char *p)
{
	uint64		hash = hash_window(p);
	Anchor	   *anchor;

	if ((hash & ANCHOR_MASK) != 0)
		return NULL;
	anchor = anchor_place(training->table, hash);
	if (anchor == NULL || anchor->count < MIN_SESSIONS || anchor->taken)
		return NULL;
	return anchor;
}

/* ---- stretches ---- */

/* Is all of it in MIN_SESSIONS sessions? Those of the anchor are asked. */
static bool
is_common(const Training *training, const char *data, size_t len,
		  const Anchor *anchor)
{
	for (int i = 0; i < MIN_SESSIONS; i++)
	{
		const Sample *sample = &training->samples[anchor->first[i]];

		if (memmem(sample->data, sample->len, data, len) == NULL)
			return false;
	}
	return true;
}

/* Take a candidate, or halves of it. */
static void
take_stretch(Training *training, const char *data, size_t len)
{
	double		count = 0;
	int			n = 0;
	Anchor	   *rarest = NULL;

	CHECK_FOR_INTERRUPTS();
	if (len < LEAST_STRETCH)
		return;
	for (size_t i = 0; i + WINDOW <= len; i++)
	{
		Anchor	   *anchor = frequent_anchor(training, data + i);

		if (anchor == NULL)
			continue;
		if (rarest == NULL || anchor->count < rarest->count)
			rarest = anchor;
		count += anchor->count;
		n++;
	}
	if (rarest == NULL)
		return;
	if (!is_common(training, data, len, rarest))
	{
		take_stretch(training, data, len / 2);
		take_stretch(training, data + len / 2, len - len / 2);
		return;
	}
	for (size_t i = 0; i + WINDOW <= len; i++)
	{
		Anchor	   *anchor = frequent_anchor(training, data + i);

		if (anchor)
			anchor->taken = true;
	}
	if (training->nstretches == training->room)
	{
		training->room *= 2;
		training->stretches = repalloc(training->stretches,
									   sizeof(Stretch) * training->room);
	}
	training->stretches[training->nstretches++] =
		(Stretch)
	{
		data, len, count / n
	};
}

/* Stretches of one sample: as long as one anchor overlaps the next. */
static void
find_stretches(Training *training, const Sample *sample)
{
	size_t		start = 0;
	size_t		end = 0;		/* of what the last anchor covers; 0: none */

	for (size_t i = 0; i + WINDOW <= sample->len; i++)
	{
		if (end != 0 && i > end)
		{
			take_stretch(training, sample->data + start, end - start);
			end = 0;
		}
		if (frequent_anchor(training, sample->data + i))
		{
			if (end == 0)
				start = i;
			end = i + WINDOW;
		}
	}
	if (end != 0)
		take_stretch(training, sample->data + start, end - start);
}

/* The most frequent first. */
static int
compare_stretches(const void *a, const void *b)
{
	double		x = ((const Stretch *) a)->count;
	double		y = ((const Stretch *) b)->count;

	return x > y ? -1 : x < y;
}

/* What the samples have in common, the most frequent last. */
static char *
common_content(Sample *samples, int n, size_t *len)
{
	Training	training = {.samples = samples,.nsamples = n,.room = 1024};
	char	   *content = palloc(CONTENT_BYTES);
	char	   *end = content + CONTENT_BYTES;
	char	   *at = end;

	training.table = MemoryContextAllocExtended(CurrentMemoryContext,
												sizeof(Anchor) << TABLE_BITS,
												MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	training.stretches = palloc(sizeof(Stretch) * training.room);
	count_anchors(&training);
	for (int s = 0; s < n; s++)
		find_stretches(&training, &samples[s]);
	pfree(training.table);
	qsort(training.stretches, training.nstretches, sizeof(Stretch),
		  compare_stretches);
	for (int i = 0; i < training.nstretches; i++)
	{
		const Stretch *stretch = &training.stretches[i];

		if (at - content < stretch->len)
			continue;
		at -= stretch->len;
		memcpy(at, stretch->data, stretch->len);
	}
	*len = end - at;
	return at;
}

/* Content with zstd's statistics; 0 when zstd finds nothing to say. */
static size_t
add_statistics(const Sample *samples, int n, const char *content, size_t len,
			   char *dictionary, size_t room)
{
	size_t	   *sizes = palloc(sizeof(size_t) * n);
	size_t		all = 0;
	char	   *together;
	ZDICT_params_t params = {.compressionLevel = archive_compression};
	size_t		result;

	for (int i = 0; i < n; i++)
		all += samples[i].len;
	together = MemoryContextAllocHuge(CurrentMemoryContext, all + 1);
	all = 0;
	for (int i = 0; i < n; i++)
	{
		memcpy(together + all, samples[i].data, samples[i].len);
		sizes[i] = samples[i].len;
		all += samples[i].len;
	}
	result = ZDICT_finalizeDictionary(dictionary, room, content, len,
									  together, sizes, (unsigned) n, params);
	pfree(together);
	return ZDICT_isError(result) ? 0 : result;
}

/* ---- does it pay? ---- */

/* What the samples come to, compressed / plain, with a dictionary or without. */
static double
measure(const Sample *samples, int n, const char *dictionary, size_t len)
{
	int			level = Max(archive_compression, 1);
	size_t		room = ZSTD_compressBound(SAMPLE_BYTES);
	char	   *out = palloc(room);
	ZSTD_CCtx  *c = ZSTD_createCCtx();
	ZSTD_CDict *d = dictionary ?
	ZSTD_createCDict(dictionary, len, DICTIONARY_LEVEL(level)) : NULL;
	double		plain = 0;
	double		packed = 0;
	bool		failed = c == NULL || (dictionary && d == NULL);

	for (int i = 0; i < n && !failed; i++)
	{
		size_t		result = d ?
		ZSTD_compress_usingCDict(c, out, room, samples[i].data,
								 samples[i].len, d) :
		ZSTD_compressCCtx(c, out, room, samples[i].data, samples[i].len,
						  level);

		failed = ZSTD_isError(result);
		plain += samples[i].len;
		packed += result;
	}
	ZSTD_freeCDict(d);
	ZSTD_freeCCtx(c);
	pfree(out);
	if (failed)
		elog(ERROR, "zstd could not try a dictionary");
	return packed / plain;
}

/* ---- rows ---- */

static int32
insert_dictionary(const char *dictionary, size_t len, int sessions,
				  double ratio, double without)
{
	Oid			types[] = {INT8OID, BYTEAOID, INT4OID, FLOAT8OID, FLOAT8OID};
	Datum		values[lengthof(types)];
	uint8		key[CRYPTO_KEY_BYTES];
	bytea	   *sealed = palloc(VARHDRSZ + len + CRYPTO_SEAL_OVERHEAD);
	bool		isnull;

	values[0] = Int64GetDatum(data_key_create(DICTIONARY_PURPOSE, key));
	SET_VARSIZE(sealed, VARHDRSZ + len + CRYPTO_SEAL_OVERHEAD);
	crypto_seal(key, DICTIONARY_PURPOSE, sizeof(DICTIONARY_PURPOSE),
				dictionary, len, (uint8 *) VARDATA(sealed));
	crypto_wipe(key, sizeof(key));
	values[1] = PointerGetDatum(sealed);
	values[2] = Int32GetDatum(sessions);
	values[3] = Float8GetDatum(ratio);
	values[4] = Float8GetDatum(without);
	owner_run(NULL, "INSERT INTO mlint.archive_dictionary"
			  " (data_key, sealed, sessions, ratio, ratio_without)"
			  " VALUES ($1, $2, $3, $4, $5) RETURNING id",
			  SPI_OK_INSERT_RETURNING, lengthof(types), types, values, NULL);
	CacheInvalidateRelcacheByRelid(mlint_relation("archive_dictionary"));
	return DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0],
									   SPI_tuptable->tupdesc, 1, &isnull));
}

/*
 * Delete dictionaries that no archive needs: this one, or (0) all but the
 * newest. One that an archive is being made with is kept by the foreign key.
 */
static uint64
drop_unused(int32 id)
{
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(id)};
	SPITupleTable *rows;
	uint64		n;

	owner_run(NULL, "DELETE FROM mlint.archive_dictionary d"
			  " WHERE CASE $1 WHEN 0 THEN d.id <>"
			  " (SELECT max(n.id) FROM mlint.archive_dictionary n)"
			  " ELSE d.id = $1 END"
			  " AND NOT EXISTS (SELECT FROM mlint.archive a"
			  " WHERE a.dictionary = d.id) RETURNING data_key",
			  SPI_OK_DELETE_RETURNING, 1, types, values, NULL);
	rows = SPI_tuptable;
	n = SPI_processed;
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;

		data_key_destroy(DatumGetInt64(SPI_getbinval(rows->vals[i],
													 rows->tupdesc, 1,
													 &isnull)));
	}
	if (n > 0)
		CacheInvalidateRelcacheByRelid(mlint_relation("archive_dictionary"));
	return n;
}

/* In an owner scope. Returns the id of the new one, or 0. */
static int32
train(int wanted)
{
	int			n;
	Sample	   *samples = read_samples(wanted, &n);
	int			ntrain = n - n / HELD_BACK;
	char	   *content;
	size_t		len;
	size_t		room = CONTENT_BYTES + HEADER_BYTES;
	char	   *dictionary = palloc(room);
	double		ratio;
	double		without;

	if (n < LEAST_SAMPLES)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("a dictionary is trained from at least %d live sessions; there are %d",
						LEAST_SAMPLES, n)));
	/* Those that are held back are spread evenly, and put behind the others. */
	for (int i = 0; i < n / HELD_BACK; i++)
	{
		Sample		held = samples[i * (HELD_BACK - 1)];

		samples[i * (HELD_BACK - 1)] = samples[n - 1 - i];
		samples[n - 1 - i] = held;
	}
	content = common_content(samples, ntrain, &len);
	len = len < CONTENT_LEAST ? 0 :
		add_statistics(samples, ntrain, content, len, dictionary, room);
	without = measure(samples + ntrain, n - ntrain, NULL, 0);
	ratio = len == 0 ? 1 : measure(samples + ntrain, n - ntrain, dictionary,
								   len);
	if (len == 0 || ratio > without * PAYS)
	{
		ereport(NOTICE,
				(errmsg("a dictionary would not pay"),
				 errdetail("Of sessions that it was not trained from, it makes %.3f of their size what is %.3f without.",
						   ratio, without)));
		return 0;
	}
	return insert_dictionary(dictionary, len, ntrain, ratio, without);
}

/* mlint.archive_dictionary_train(samples) */
Datum
mlint_archive_dictionary_train(PG_FUNCTION_ARGS)
{
	int			samples = PG_ARGISNULL(0) ? 0 : PG_GETARG_INT32(0);
	OwnerScope	scope;
	int32		id;

	require_writable(fcinfo);
	if (samples < LEAST_SAMPLES || samples > MOST_SAMPLES)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("samples must be between %d and %d", LEAST_SAMPLES,
						MOST_SAMPLES)));
	audit(AUDIT_CHANGED, "archive_dictionary.train", "archive dictionary",
		  NULL, psprintf("{\"samples\": %d}", samples));
	owner_begin(&scope);
	id = train(samples);
	if (id != 0)
		(void) drop_unused(0);
	owner_end(&scope);
	if (id == 0)
		PG_RETURN_NULL();
	PG_RETURN_INT32(id);
}

/* mlint.archive_dictionary_drop(id) */
Datum
mlint_archive_dictionary_drop(PG_FUNCTION_ARGS)
{
	int32		id = PG_GETARG_INT32(0);
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(id)};
	OwnerScope	scope;

	require_writable(fcinfo);
	audit(AUDIT_CHANGED, "archive_dictionary.drop", "archive dictionary",
		  psprintf("%d", id), NULL);
	owner_begin(&scope);
	if (SPI_execute_with_args("SELECT FROM mlint.archive_dictionary WHERE id = $1",
							  1, types, values, NULL, false,
							  0) != SPI_OK_SELECT || SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("dictionary %d does not exist", id),
				 errhint("View mlint.archive_dictionaries shows the dictionaries.")));
	if (id == 0 || drop_unused(id) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
				 errmsg("dictionary %d is needed by archives", id),
				 errhint("It can be dropped when the last of them is gone; mlint.archive_dictionary_train() makes another one for new archives.")));
	owner_end(&scope);
	PG_RETURN_VOID();
}
