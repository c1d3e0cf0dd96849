/*
 * http_probe.c
 *		The HTTP client seen from C, for 021_http_client.pl, which compiles
 *		this file together with src/common/{http,netpolicy,glob}.c.
 *
 * What the SQL function does not show: a CA of one's own, connections that
 * are kept and forgotten, requests that are cancelled or freed in flight,
 * many at a time.
 */
#include "postgres.h"

#include "common/http.h"
#include "common/netpolicy.h"
#include "catalog/pg_type.h"
#include "common/glob.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "portability/instr_time.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(probe_tls);
PG_FUNCTION_INFO_V1(probe_sequence);
PG_FUNCTION_INFO_V1(probe_burst);
PG_FUNCTION_INFO_V1(probe_glob);

void		_PG_init(void);

static const char *const failures[] = {
	"ok", "invalid", "refused", "unreachable", "tls", "timeout", "protocol",
	"cancelled"
};

void
_PG_init(void)
{
	http_startup();
	netpolicy_define_settings();
}

Datum
probe_glob(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(glob_match(text_to_cstring(PG_GETARG_TEXT_PP(0)),
							  text_to_cstring(PG_GETARG_TEXT_PP(1))));
}

/* probe_tls(url, ca or NULL, verify): "failure status" or the error. */
Datum
probe_tls(PG_FUNCTION_ARGS)
{
	HttpTarget	target = {
		.url = text_to_cstring(PG_GETARG_TEXT_PP(0)),
		.ca = PG_ARGISNULL(1) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(1)),
		.verify = PG_GETARG_BOOL(2),
		.timeout_ms = 10000,
		.connect_timeout_ms = 10000
	};
	HttpResponse *response = http_perform(&target, NULL, NULL, 0);

	PG_RETURN_TEXT_P(cstring_to_text(psprintf("%s %d %s",
											  failures[response->failure],
											  response->status,
											  response->error)));
}

typedef struct Run
{
	int			done;
	int			to_submit;
	int			counts[lengthof(failures)];
	StringInfoData log;
	bool		free_when_done;
	bool		log_body;
	char		error[256];		/* the last one */
} Run;

static void
probe_done(HttpRequest *request, const HttpResponse *response, void *arg)
{
	Run		   *run = arg;

	run->done++;
	run->counts[response->failure]++;
	if (response->failure != HTTP_OK)
		strlcpy(run->error, response->error, sizeof(run->error));
	if (run->log.data)
		appendStringInfo(&run->log, "%s%s:%d:%s", run->log.len ? " " : "",
						 failures[response->failure], response->status,
						 run->log_body ? response->body : "");
	if (run->to_submit > 0)
	{
		struct curl_slist *headers = NULL;

		run->to_submit--;
		headers = http_header(headers, "Content-Type", "application/json");
		headers = http_header(headers, "webhook-id", "msg_2KWPBgLlAfxdpx2AI54pPJ85f4W");
		headers = http_header(headers, "webhook-timestamp", "1674087231");
		headers = http_header(headers, "webhook-signature", "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=");
		headers = http_header(headers, "X-Webhook-Signature", "sha256=0123456789012345678901234567890123456789012345678901234567890123");
		http_request_submit(request, headers, "{\"n\":1}", 7, probe_done, run);
	}
	else if (run->free_when_done)
		http_request_free(request);
}

static void
wait_for(HttpClient *client, Run *run, int done)
{
	while (run->done < done)
	{
		long		timeout;

		CHECK_FOR_INTERRUPTS();
		http_client_run(client);
		if (run->done >= done)
			break;
		timeout = http_client_timeout(client);
		(void) WaitLatchOrSocket(MyLatch,
								 WL_LATCH_SET | WL_SOCKET_READABLE |
								 WL_EXIT_ON_PM_DEATH |
								 (timeout >= 0 ? WL_TIMEOUT : 0),
								 http_client_fd(client), timeout, 0);
		ResetLatch(MyLatch);
	}
}

/*
 * probe_sequence(steps): one client, one step after the other. A step is a
 * URL (requested; logged as failure:status:body), "forget", "deny LIST",
 * "cancel URL" (submitted and cancelled), "abandon URL" (freed in flight),
 * "timeout MS" and "idle" (http_client_timeout() logged).
 */
Datum
probe_sequence(PG_FUNCTION_ARGS)
{
	ArrayType  *steps = PG_GETARG_ARRAYTYPE_P(0);
	Datum	   *datums;
	int			n;
	HttpClient *client = http_client_create(10);
	HttpTarget	target = {.timeout_ms = 10000,.connect_timeout_ms = 10000,
	.keep_body = 1000};
	Run			run = {.log_body = true};

	initStringInfo(&run.log);
	deconstruct_array(steps, TEXTOID, -1, false, 'i', &datums, NULL, &n);
	for (int i = 0; i < n; i++)
	{
		char	   *step = TextDatumGetCString(datums[i]);
		int			before = run.done;

		if (strcmp(step, "forget") == 0)
			http_client_forget_connections(client);
		else if (strcmp(step, "idle") == 0)
			appendStringInfo(&run.log, " idle:%ld",
							 http_client_timeout(client));
		else if (strncmp(step, "deny ", 5) == 0)
			SetConfigOption("mlint.http_deny", step + 5, PGC_SIGHUP,
							PGC_S_OVERRIDE);
		else if (strncmp(step, "timeout ", 8) == 0)
			target.timeout_ms = target.connect_timeout_ms = atoi(step + 8);
		else if (strncmp(step, "cancel ", 7) == 0 ||
				 strncmp(step, "abandon ", 8) == 0)
		{
			bool		cancel = step[0] == 'c';
			HttpRequest *request;

			target.url = strchr(step, ' ') + 1;
			request = http_request_create(client, &target);
			http_request_submit(request, NULL, NULL, 0, probe_done, &run);
			http_client_run(client);
			if (cancel)
			{
				http_request_cancel(request);
				wait_for(client, &run, before + 1);
			}
			else
				http_request_free(request);
		}
		else
		{
			HttpRequest *request;

			target.url = step;
			request = http_request_create(client, &target);
			http_request_submit(request, NULL, NULL, 0, probe_done, &run);
			wait_for(client, &run, before + 1);
			http_request_free(request);
		}
	}
	http_client_destroy(client);
	PG_RETURN_TEXT_P(cstring_to_text(run.log.data));
}

/*
 * probe_burst(url, n, concurrency): n signed POSTs by one client; "ok=… rate=…".
 */
Datum
probe_burst(PG_FUNCTION_ARGS)
{
	int			n = PG_GETARG_INT32(1);
	int			concurrency = PG_GETARG_INT32(2);
	HttpClient *client = http_client_create(concurrency);
	HttpTarget	target = {
		.url = text_to_cstring(PG_GETARG_TEXT_PP(0)),
		.method = "POST",
		.timeout_ms = 30000,
		.connect_timeout_ms = 5000,
		.keep_body = 256
	};
	Run			run = {.free_when_done = true};
	instr_time	start,
				end;

	INSTR_TIME_SET_CURRENT(start);
	run.to_submit = n - concurrency;
	for (int i = 0; i < concurrency; i++)
		http_request_submit(http_request_create(client, &target), NULL,
							"{}", 2, probe_done, &run);
	wait_for(client, &run, n);
	INSTR_TIME_SET_CURRENT(end);
	INSTR_TIME_SUBTRACT(end, start);
	http_client_destroy(client);
	PG_RETURN_TEXT_P(cstring_to_text(psprintf("ok=%d rate=%.0f %s", run.counts[0],
											  n / INSTR_TIME_GET_DOUBLE(end), run.error)));
}
