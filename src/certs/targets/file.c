/*
 * file.c
 *		Certificates as files below mlint.certificate_directory.
 *
 * "directory" (the default): the path is a link to a directory that holds
 * fullchain.pem, chain.pem, cert.pem and privkey.pem. A new certificate is
 * written into another directory, and then the link changes: who opens a file
 * by way of the link finds a pair that belongs together, before and after, and
 * whatever crashes. Only who opens the chain just before and the key just after
 * the link has changed gets one of each: who reads on its own, without being
 * told to, takes "combined", one file with the key and the chain in it.
 *
 * What is to be reloaded is told in the transaction that records the push, by
 * NOTIFY or by an event.
 */
#include "postgres.h"

#include "certs/certs.h"
#include "certs/targets/kind.h"
#include "commands/async.h"
#include "common/errors.h"
#include "common/injection.h"
#include "common/place.h"
#include "delivery/delivery.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

/* What directories that we make have of the topmost one's mode. */
#define DIRECTORY_MODE	02755
#define FILE_MODE		0644
#define CHANNEL_MAX		63
#define TYPE_MAX		255

typedef enum FileFormat
{
	FORMAT_DIRECTORY,
	FORMAT_COMBINED
} FileFormat;

static const char *const formats[] = {"directory", "combined", NULL};
static const char *const key_modes[] = {"0400", "0440", "0600", "0640", NULL};
static const mode_t key_mode_bits[] = {0400, 0440, 0600, 0640};

typedef struct FileOptions
{
	TargetOptions common;
	char	   *path;
	int			format;
	int			key_mode;
	char	   *notify;
	char	   *event;
} FileOptions;

#define AT(member) offsetof(FileOptions, member)

static const Option reload_options[] = {
	{"notify", OPTION_TEXT, AT(notify), NULL, 0, 0, NULL, NULL, false,
	"channel that is notified"},
	{"event", OPTION_TEXT, AT(event), NULL, 0, 0, NULL, NULL, false,
	"type of an event that is published"},
	{NULL}
};

static const Option file_options[] = {
	{"path", OPTION_TEXT, AT(path), NULL, 0, 0, NULL, NULL, true,
	"where it is, below mlint.certificate_directory"},
	{"format", OPTION_ENUM, AT(format), "directory", 0, 0, formats, NULL,
		false,
	"a directory with fullchain.pem, chain.pem, cert.pem and privkey.pem, or one file with the key and the chain"},
	{"key_mode", OPTION_ENUM, AT(key_mode), "0600", 0, 0, key_modes, NULL,
		false,
	"mode of the file that the key is in"},
	{"reload", OPTION_GROUP, 0, NULL, 0, 0, NULL, reload_options, false,
	"who is told that it is there"},
	{NULL}
};

static void
file_check(const void *options, Oid owner, const char *what)
{
	const FileOptions *o = options;

	if (certificate_directory == NULL || certificate_directory[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("%s cannot write files: mlint.certificate_directory is not set",
						what),
				 errhint("Set it to a directory of the server's operating-system user, to which nobody else may write, outside of the data directory.")));
	if (!place_path_valid(o->path))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("option \"path\" of %s must be relative, of names separated by \"/\"",
						what),
				 errdetail("A name has 1 to %d bytes, no control character, and does not begin with a dot.",
						   PLACE_NAME_BYTES)));
	if (o->notify && (o->notify[0] == '\0' || strlen(o->notify) > CHANNEL_MAX))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("option \"reload.notify\" of %s must be the name of a channel, 1 to %d bytes",
						what, CHANNEL_MAX)));
	if (o->event && (o->event[0] == '\0' || strlen(o->event) > TYPE_MAX))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("option \"reload.event\" of %s must be the type of an event, 1 to %d bytes",
						what, TYPE_MAX)));
}

static char *
file_place(const void *options)
{
	return psprintf("path \"%s\"", ((const FileOptions *) options)->path);
}

/* What goes into a file. */
typedef struct Content
{
	const char *name;
	mode_t		mode;
	const char *data;
} Content;

static bool
write_directory(Place *place, bool ours, const Content *contents, int n)
{
	Place		inside;
	bool		ok = place_pair_open(place, ours, &inside);

	for (int i = 0; ok && i < n; i++)
	{
		place_name(&inside, contents[i].name);
		ok = place_put(&inside, contents[i].mode, contents[i].data,
					   strlen(contents[i].data)) ||
			place_fail(place, inside.fault, inside.error);
	}
	INJECTION("certificate-file-written");
	ok = ok && place_pair_switch(place, &inside);
	INJECTION("certificate-file-switched");
	ok = ok && place_pair_clean(place);
	place_close(&inside);
	return ok;
}

static bool
write_combined(Place *place, bool ours, mode_t mode, const char *key,
			   const char *chain)
{
	char	   *both = pushed_key_and_chain(key, chain);
	size_t		len = strlen(both);

	/* What a crash has left is not known to be ours, but to be the same. */
	bool		ok = place_pair_look(place, ours ||
									 place_holds(place, both, len)) &&
	place_put(place, mode, both, len) && place_pair_remove(place);

	crypto_wipe(both, len);
	return ok;
}

/* Tell those who are to reload. */
static void
tell(const FileOptions *o, const PushedCertificate *certificate,
	 const char *path)
{
	if (o->notify)
	{
		StringInfoData payload;

		initStringInfo(&payload);
		appendStringInfo(&payload,
						 "{\"name\": \"%s\", \"serial\": \"%s\", \"target\": \"%s\"}",
						 certificate->name, certificate->serial,
						 certificate->target);
		Async_Notify(o->notify, payload.data);
	}
	if (o->event)
		(void) event_publish(o->event, pushed_document(certificate, false),
							 DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
																CStringGetDatum("{}"))),
							 NULL, 0, 0);
}

static char *
file_push(const void *options, Oid owner, const char *region,
		  const PushedCertificate *certificate, const char *key,
		  const char *reference)
{
	const FileOptions *o = options;
	char	   *path = psprintf("%s/%s", certificate_directory, o->path);
	mode_t		key_mode = key_mode_bits[o->key_mode];
	Content		contents[] = {
		{"fullchain.pem", FILE_MODE, certificate->chain},
		{"chain.pem", FILE_MODE, certificate->issuers},
		{"cert.pem", FILE_MODE, certificate->leaf},
		{"privkey.pem", key_mode, key}
	};
	Place		place;
	bool		ours = reference && strcmp(reference, path) == 0;

	if (place_open(&place, certificate_directory, o->path, true,
				   DIRECTORY_MODE))
	{
		if (o->format == FORMAT_COMBINED)
			(void) write_combined(&place, ours, key_mode, key,
								  certificate->chain);
		else
			(void) write_directory(&place, ours, contents, lengthof(contents));
	}
	place_finish(&place, "mlint.certificate_directory", psprintf("\"%s\"", path));
	tell(o, certificate, path);
	return path;
}

const TargetKind target_file = {
	.base = {
		.name = "file",
		.help = "files below mlint.certificate_directory",
		.options = file_options,
		.options_size = sizeof(FileOptions)
	},
	.wants_key = true,
	.check = file_check,
	.place = file_place,
	.push = file_push,
};
