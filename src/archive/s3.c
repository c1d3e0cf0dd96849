/*
 * s3.c
 *		Objects in Amazon S3, and in what speaks like it.
 *
 * An object of up to 16 MiB is one PUT. A larger one is a multipart upload of
 * parts of 8 MiB (more, where ten thousand of these would not do), so a part is
 * all that is in memory. Each request is signed with the digest of its body, and
 * tells the digest once more as a checksum that the store keeps; so bytes that
 * were changed on the way are refused.
 *
 * An upload that fails is aborted. One that a crash has left is found before the
 * next upload of the same object, and aborted, because its parts cost money and
 * no listing of objects shows them.
 *
 * A request that the store is too busy for, or that breaks, is made again,
 * twice at most, with growing pauses; all of them can be. What fails then is the
 * caller's.
 */
#include "postgres.h"

#include "archive/store.h"
#include "common/aws.h"
#include "common/compat.h"
#include "common/crypto.h"
#include "common/errors.h"
#include "common/injection.h"
#include "common/peertext.h"
#include "common/retry.h"
#include "common/sigv4.h"
#include "common/trial.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define SINGLE_MAX		(16 * 1024 * 1024)
#define PART_BYTES		(8 * 1024 * 1024)
#define PART_BYTES_MAX	(16 * 1024 * 1024)
#define PARTS_MAX		10000	/* S3's limit */
/* Answers that are documents: a listing of uploads is the longest. */
#define DOCUMENT_MAX	(1024 * 1024)

enum
{
	SSE_NONE,
	SSE_AES256,
	SSE_KMS
};

static const char *const sse_choices[] = {"none", "AES256", "aws:kms", NULL};

typedef struct S3Options
{
	StoreOptions common;
	char	   *bucket;
	char	   *region;
	char	   *endpoint;
	bool		path_style;
	char	   *ca;
	AwsAccess	access;
	char	   *storage_class;
	int			sse;
	char	   *sse_kms_key_id;
	bool		checksums;
} S3Options;

#define AT(member) offsetof(S3Options, member)

static const Option s3_options[] = {
	{"bucket", OPTION_TEXT, AT(bucket), NULL, 0, 0, NULL, NULL, true,
	"bucket that the objects go to"},
	{"region", OPTION_TEXT, AT(region), "us-east-1", 0, 0, NULL, NULL, false,
	"region that requests are signed for"},
	{"endpoint", OPTION_URL, AT(endpoint), NULL, 0, 0, NULL, NULL, false,
	"URL of the service; the region's at Amazon if not given"},
	{"path_style", OPTION_BOOL, AT(path_style), "true", 0, 0, NULL, NULL,
		false,
	"whether the bucket is named in the URL's path; if not, in its host name"},
	AWS_ACCESS_OPTIONS(AT(access), true, "access key"),
	{"storage_class", OPTION_TEXT, AT(storage_class), NULL, 0, 0, NULL, NULL,
	false, "storage class of the objects; the bucket's own if not given"},
	{"server_side_encryption", OPTION_ENUM, AT(sse), "none", 0, 0,
		sse_choices, NULL, false,
	"how the store is to encrypt the objects, beside what mlint does"},
	{"sse_kms_key_id", OPTION_TEXT, AT(sse_kms_key_id), NULL, 0, 0, NULL, NULL,
	false, "key to do that with (aws:kms)"},
	{"checksums", OPTION_BOOL, AT(checksums), "true", 0, 0, NULL, NULL, false,
	"whether to send x-amz-checksum-sha256, which some services do not know"},
	{NULL}
};

/* Of an open store. */
typedef struct S3State
{
	HttpClient *client;
	SigV4		keys;
	MemoryContextCallback callback;
} S3State;

/* One request, and what came of it. */
typedef struct S3Request
{
	const char *method;
	const char *object;			/* NULL: the bucket */
	const char *query;			/* in order, encoded; or NULL */
	SigV4Header headers[SIGV4_MAX_HEADERS];
	int			nheaders;
	const void *body;
	size_t		len;
	size_t		keep;			/* bytes of the answer */
	int			retries;
	HttpResponse *answer;
} S3Request;

static const S3Options *
s3_of(const Store *store)
{
	return (const S3Options *) store->options;
}

static bool
made_of(const char *text, const char *characters)
{
	return text[0] != '\0' && strspn(text, characters) == strlen(text);
}

static void
s3_check(const StoreOptions *options, const char *what)
{
	const S3Options *o = (const S3Options *) options;

	if (!made_of(o->bucket, "abcdefghijklmnopqrstuvwxyz"
				 "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._") ||
		strlen(o->bucket) > 63 || o->bucket[0] == '.')
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("option \"bucket\" of %s is not the name of a bucket",
						what),
				 errdetail("A name is 3 to 63 characters: letters of the English alphabet, digits, and any of - . _")));
	aws_region_check(o->region, "region", what);
	if (o->endpoint && strchr(o->endpoint, '?') != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("option \"endpoint\" of %s must not have a query", what)));
	if (o->sse_kms_key_id && o->sse != SSE_KMS)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("option \"sse_kms_key_id\" of %s needs option \"server_side_encryption\" to be \"aws:kms\"",
						what)));
	http_header_check("x-amz-access-key", o->access.access_key_id, what);
	if (o->storage_class)
		http_header_check("x-amz-storage-class", o->storage_class, what);
	if (o->sse_kms_key_id)
		http_header_check("x-amz-server-side-encryption-aws-kms-key-id",
						  o->sse_kms_key_id, what);
}

/* ---- requests ---- */

static void
s3_close(void *arg)
{
	S3State    *s3 = arg;

	if (s3->keys.secret)
		crypto_wipe(unconstify(char *, s3->keys.secret),
					strlen(s3->keys.secret));
	if (s3->keys.token)
		crypto_wipe(unconstify(char *, s3->keys.token),
					strlen(s3->keys.token));
}

/* The keys and the connection, which are the store's until its context ends. */
static S3State *
s3_state(Store *store)
{
	const S3Options *o = s3_of(store);
	S3State    *s3 = store->state;
	MemoryContext caller;
	size_t		len;

	if (s3)
		return s3;
	caller = MemoryContextSwitchTo(store->context);
	s3 = palloc0(sizeof(S3State));
	s3->callback.func = s3_close;
	s3->callback.arg = s3;
	MemoryContextRegisterResetCallback(store->context, &s3->callback);
	s3->keys.key_id = o->access.access_key_id;
	s3->keys.region = o->region;
	s3->keys.service = "s3";
	s3->keys.secret = credential_resolve(&o->access.secret_access_key, &len);
	if (o->access.session_token.kind != CREDENTIAL_NONE)
		s3->keys.token = credential_resolve(&o->access.session_token, &len);
	s3->client = http_client_create(1);
	store->state = s3;
	MemoryContextSwitchTo(caller);
	return s3;
}

static char *
s3_url(const Store *store, const char *object, const char *query)
{
	const S3Options *o = s3_of(store);
	char	   *base = o->endpoint ? pstrdup(o->endpoint) :
	aws_url("s3", o->region);
	size_t		len = strlen(base);
	char	   *host = strstr(base, "://") + 3;
	char	   *root;

	while (len > 0 && base[len - 1] == '/')
		base[--len] = '\0';
	root = o->path_style ?
		psprintf("%s/%s", base, o->bucket) :
		psprintf("%.*s%s.%s", (int) (host - base), base, o->bucket, host);
	return psprintf("%s%s%s%s%s", root, object ? "/" :
					o->path_style ? "" : "/",
					object ? sigv4_escape(object, false) : "",
					query ? "?" : "", query ? query : "");
}

static void
add_header(S3Request *r, const char *name, const char *value)
{
	Assert(r->nheaders < SIGV4_MAX_HEADERS);
	r->headers[r->nheaders++] = (SigV4Header)
	{
		name, value
	};
}

static char *
sha256_base64(const void *data, size_t len)
{
	uint8		digest[CRYPTO_SHA256_BYTES];
	char	   *text = palloc(CRYPTO_BASE64_BYTES(sizeof(digest)));

	crypto_sha256(data, len, digest);
	crypto_base64(digest, sizeof(digest), text);
	return text;
}

/* The content of the first element of this name, or NULL. */
static char *
element(const char *xml, const char *name)
{
	char	   *open = psprintf("<%s>", name);
	const char *at = strstr(xml, open);
	const char *end;

	if (at == NULL)
		return NULL;
	at += strlen(open);
	end = strchr(at, '<');
	return end ? pnstrdup(at, end - at) : NULL;
}

/* The value of a header of the answer, or NULL. */
static char *
answer_header(const HttpResponse *answer, const char *name)
{
	size_t		len = strlen(name);

	for (const char *line = answer->headers; *line;)
	{
		size_t		n = strcspn(line, "\r\n");

		if (n > len && pg_strncasecmp(line, name, len) == 0 &&
			line[len] == ':')
		{
			const char *value = line + len + 1;

			while (*value == ' ' || *value == '\t')
				value++;
			return pnstrdup(value, line + n - value);
		}
		line += n;
		line += strspn(line, "\r\n");
	}
	return NULL;
}

/* Raise what an answer says that is a failure. */
static void
pg_attribute_noreturn()
s3_refused(const Store *store, const S3Request *r)
{
	const HttpResponse *answer = r->answer;
	char	   *code = element(answer->body, "Code");
	char	   *says = element(answer->body, "Message");

	if (code == NULL || strlen(code) > 64 || !http_is_token(code))
		code = NULL;
	/* The request is quoted in the words about a signature: leave them. */
	if (says && (strstr(answer->body, "CanonicalRequest") ||
				 strlen(says) > 240))
		says = NULL;
	if (says)
		peer_text_clean(says);
	if (answer->status < 300)
		store_fail(store, ERRCODE_MLINT_API, says, "it failed%s%s",
				   code ? ": " : " in its answer", code ? code : "");
	if (answer->status < 400)
		store_fail(store, ERRCODE_MLINT_API, says,
				   "it answered with a redirect (status %d%s%s): check the region and the endpoint",
				   answer->status, code ? ", " : "", code ? code : "");
	store_fail(store, http_sqlstate(answer), says,
			   "it answered with status %d%s%s", answer->status,
			   code ? ", " : "", code ? code : "");
}

/* Sleep on the latch. */
static void
pause_for(int64 us)
{
	TimestampTz until = GetCurrentTimestamp() + us;
	static uint32 wait_event = 0;

	if (wait_event == 0)
		wait_event = mlint_wait_event("MlintArchiveStore");
	for (;;)
	{
		long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
														   until);

		CHECK_FOR_INTERRUPTS();
		if (left <= 0)
			return;
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 left, wait_event);
		ResetLatch(MyLatch);
	}
}

/* Would the same request do better in a moment? */
static bool
is_passing(const HttpResponse *answer)
{
	return answer->failure == HTTP_UNREACHABLE ||
		answer->failure == HTTP_TIMEOUT ||
		(answer->failure == HTTP_OK &&
		 (answer->status == 429 || answer->status >= 500));
}

/* Send. What is no answer is raised here; every answer is the caller's. */
static void
s3_send(Store *store, S3Request *r)
{
	static const RetryPolicy pauses = {RETRY_EXPONENTIAL, 2, 500, 3, 5000};
	const S3Options *o = s3_of(store);
	S3State    *s3 = s3_state(store);
	HttpTarget	target = {
		.url = s3_url(store, r->object, r->query),
		.method = r->method,
		.timeout_ms = o->common.timeout_ms,
		.connect_timeout_ms = Min(o->common.timeout_ms, 10000),
		.ca = o->access.ca,
		.verify = true,
		.keep_body = r->keep ? r->keep : DOCUMENT_MAX,
		.keep_headers = true,
		.confidential = true
	};

	for (int attempt = 1;; attempt++)
	{
		int64		delay;

		r->answer = http_exchange(s3->client, &target,
								  sigv4_sign(&s3->keys, r->method,
											 target.url, r->headers,
											 r->nheaders,
											 r->body ? r->body : "", r->len),
								  r->body, r->len);
		delay = retry_delay(&pauses, attempt, r->answer->retry_after);
		if (!is_passing(r->answer) || attempt > r->retries || delay < 0 ||
			delay > 10 * USECS_PER_SEC)
			break;
		pause_for(delay);
	}
	if (r->answer->failure != HTTP_OK)
		store_fail(store, http_sqlstate(r->answer), NULL, "%s",
				   r->answer->error);
}

/* How an object is to be kept. */
static void
add_object_headers(const Store *store, S3Request *r)
{
	const S3Options *o = s3_of(store);

	if (o->storage_class)
		add_header(r, "x-amz-storage-class", o->storage_class);
	if (o->sse != SSE_NONE)
		add_header(r, "x-amz-server-side-encryption", sse_choices[o->sse]);
	if (o->sse_kms_key_id)
		add_header(r, "x-amz-server-side-encryption-aws-kms-key-id",
				   o->sse_kms_key_id);
}

/* ---- multipart uploads ---- */

static void
abort_upload(Store *store, const char *object, const char *upload)
{
	S3Request	r = {.method = "DELETE",.object = object,
		.query = psprintf("uploadId=%s", sigv4_escape(upload, true)),
	.retries = 2};

	s3_send(store, &r);
	if (r.answer->status >= 300 && r.answer->status != 404)
		s3_refused(store, &r);
}

/*
 * Abort uploads of this object that were begun and never ended. Where we may
 * not list them, they stay.
 */
static void
abort_leftovers(Store *store, const char *object)
{
	S3Request	r = {.method = "GET",
		.query = psprintf("prefix=%s&uploads=", sigv4_escape(object, true)),
	.retries = 2};
	const char *at;

	s3_send(store, &r);
	if (r.answer->status != 200)
		return;
	for (at = r.answer->body; (at = strstr(at, "<Upload>")) != NULL;)
	{
		const char *end = strstr(at, "</Upload>");
		char	   *one;
		char	   *key;
		char	   *id;

		if (end == NULL)
			break;
		one = pnstrdup(at, end - at);
		key = element(one, "Key");
		id = element(one, "UploadId");
		if (key && id && strcmp(key, object) == 0)
			abort_upload(store, object, id);
		at = end;
	}
}

static char *
begin_upload(Store *store, const char *object)
{
	S3Request	r = {.method = "POST",.object = object,.query = "uploads=",
	.retries = 2};
	char	   *id;

	add_object_headers(store, &r);
	if (s3_of(store)->checksums)
		add_header(&r, "x-amz-checksum-algorithm", "SHA256");
	s3_send(store, &r);
	if (r.answer->status != 200)
		s3_refused(store, &r);
	id = element(r.answer->body, "UploadId");
	if (id == NULL || id[0] == '\0')
		store_fail(store, ERRCODE_MLINT_SERIALIZATION, NULL,
				   "its answer has no id of the upload");
	return id;
}

/* Send the parts, and note them in the document that completes the upload. */
static void
send_parts(Store *store, const char *object, const char *upload, int64 size,
		   StoreSource source, void *arg, StringInfo document)
{
	const S3Options *o = s3_of(store);
	int64		part = Max(PART_BYTES, (size + PARTS_MAX - 1) / PARTS_MAX);
	char	   *buffer = palloc(part);
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext each = AllocSetContextCreate(caller, "mlint upload",
											   ALLOCSET_DEFAULT_SIZES);
	int64		at = 0;

	appendStringInfoString(document, "<CompleteMultipartUpload>");
	for (int n = 1; at < size; n++)
	{
		size_t		len = Min(part, size - at);
		S3Request	r = {.method = "PUT",.object = object,.body = buffer,
		.len = len,.retries = 2};
		char	   *etag;

		source(buffer, len, arg);
		MemoryContextReset(each);
		MemoryContextSwitchTo(each);
		r.query = psprintf("partNumber=%d&uploadId=%s", n,
						   sigv4_escape(upload, true));
		if (o->checksums)
			add_header(&r, "x-amz-checksum-sha256",
					   sha256_base64(buffer, len));
		s3_send(store, &r);
		if (r.answer->status != 200)
			s3_refused(store, &r);
		etag = answer_header(r.answer, "etag");
		if (etag == NULL || strpbrk(etag, "<&>") != NULL)
			store_fail(store, ERRCODE_MLINT_SERIALIZATION, NULL,
					   "its answer has no ETag of the part");
		MemoryContextSwitchTo(caller);
		appendStringInfo(document,
						 "<Part><PartNumber>%d</PartNumber><ETag>%s</ETag>",
						 n, etag);
		if (o->checksums)
			appendStringInfo(document,
							 "<ChecksumSHA256>%s</ChecksumSHA256>",
							 r.headers[0].value);
		appendStringInfoString(document, "</Part>");
		at += len;
		INJECTION("archive-s3-part");
	}
	appendStringInfoString(document, "</CompleteMultipartUpload>");
	MemoryContextDelete(each);
	pfree(buffer);
}

/* A failure may come in an answer of status 200, after a while of waiting. */
static void
complete_upload(Store *store, const char *object, const char *upload,
				const StringInfo document)
{
	S3Request	r = {.method = "POST",.object = object,
		.query = psprintf("uploadId=%s", sigv4_escape(upload, true)),
	.body = document->data,.len = document->len};

	s3_send(store, &r);
	if (r.answer->status != 200 ||
		strstr(r.answer->body, "<CompleteMultipartUploadResult") == NULL)
		s3_refused(store, &r);
}

/* What this fails with is less than why it was needed. */
static void
give_up_upload(Store *store, const char *object, const char *upload)
{
	Trial		trial;

	trial_begin(&trial);
	PG_TRY();
	{
		abort_upload(store, object, upload);
		trial_end(&trial);
	}
	PG_CATCH();
	{
		ErrorData  *error = trial_failed(&trial);

		if (error->sqlerrcode == ERRCODE_QUERY_CANCELED ||
			error->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN)
			ReThrowError(error);
		FreeErrorData(error);
	}
	PG_END_TRY();
}

static void
put_multipart(Store *store, const char *object, int64 size,
			  StoreSource source, void *arg)
{
	StringInfoData document;
	char	   *upload;
	Trial		trial;

	abort_leftovers(store, object);
	upload = begin_upload(store, object);
	INJECTION("archive-s3-begun");
	initStringInfo(&document);
	trial_begin(&trial);
	PG_TRY();
	{
		send_parts(store, object, upload, size, source, arg, &document);
		complete_upload(store, object, upload, &document);
		trial_end(&trial);
	}
	PG_CATCH();
	{
		ErrorData  *error = trial_failed(&trial);

		give_up_upload(store, object, upload);
		ReThrowError(error);
	}
	PG_END_TRY();
}

/* ---- the verbs ---- */

static void
s3_put(Store *store, const char *object, int64 size, StoreSource source,
	   void *arg)
{
	S3Request	r = {.method = "PUT",.object = object,.len = size,
	.retries = 2};
	char	   *buffer;

	if (size > (int64) PART_BYTES_MAX * PARTS_MAX)
		store_fail(store, ERRCODE_PROGRAM_LIMIT_EXCEEDED, NULL,
				   "no object can have more than %d parts of %d MiB",
				   PARTS_MAX, PART_BYTES_MAX / 1024 / 1024);
	if (size > SINGLE_MAX)
	{
		put_multipart(store, object, size, source, arg);
		return;
	}
	buffer = palloc(Max(size, 1));
	source(buffer, size, arg);
	r.body = buffer;
	if (s3_of(store)->checksums)
		add_header(&r, "x-amz-checksum-sha256", sha256_base64(buffer, size));
	add_object_headers(store, &r);
	s3_send(store, &r);
	if (r.answer->status != 200)
		s3_refused(store, &r);
	pfree(buffer);
}

static void
s3_get(Store *store, const char *object, int64 offset, size_t len,
	   void *buffer)
{
	S3Request	r = {.method = "GET",.object = object,.keep = len + 4096,
	.retries = 2};

	if (len == 0)
		return;
	add_header(&r, "range", psprintf("bytes=" INT64_FORMAT "-" INT64_FORMAT,
									 offset, offset + (int64) len - 1));
	s3_send(store, &r);
	if (r.answer->status >= 300)
		s3_refused(store, &r);
	/* One that takes no notice of the range sends all there is. */
	if (r.answer->body_len != len || r.answer->truncated ||
		(r.answer->status != 206 && offset != 0))
		store_fail(store, ERRCODE_MLINT_API, NULL,
				   "it sent %zu bytes where %zu were asked for",
				   r.answer->body_len, len);
	memcpy(buffer, r.answer->body, len);
	crypto_wipe(unconstify(char *, r.answer->body), len);
}

static void
s3_delete(Store *store, const char *object)
{
	S3Request	r = {.method = "DELETE",.object = object,.retries = 2};

	s3_send(store, &r);
	if (r.answer->status >= 300 && r.answer->status != 404)
		s3_refused(store, &r);
}

static char *
s3_place(Store *store)
{
	const S3Options *o = s3_of(store);

	return psprintf("bucket \"%s\" in region \"%s\"", o->bucket, o->region);
}

const StoreKind store_s3 = {
	.base.name = "s3",
	.base.help = "Amazon S3, or a service that speaks like it",
	.base.options = s3_options,
	.base.options_size = sizeof(S3Options),
	.check = s3_check,
	.put = s3_put,
	.get = s3_get,
	.delete = s3_delete,
	.place = s3_place,
};
