/*
 * file.c
 *		Objects as files below mlint.archive_directory, and nowhere else
 *		(place.h).
 *
 * For a mounted file system that is somebody else's to back up. Names come from
 * a small set of characters and never begin with a dot.
 */
#include "postgres.h"

#include <fcntl.h>
#include <unistd.h>

#include "archive/store.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/injection.h"
#include "common/place.h"
#include "miscadmin.h"
#include "utils/guc.h"

#define SETTING			"mlint.archive_directory"
#define PIECE_BYTES		(1024 * 1024)

typedef struct FileOptions
{
	StoreOptions common;
	char	   *directory;
} FileOptions;

static const Option file_options[] = {
	{"directory", OPTION_TEXT, offsetof(FileOptions, directory), NULL,
		0, 0, NULL, NULL, false,
	"directory below mlint.archive_directory, by its absolute path or from there; that itself if not given"},
	{NULL}
};

static char *archive_directory;

void
store_define_settings(void)
{
	DefineCustomStringVariable(SETTING,
							   "Directory below which archive stores of kind \"file\" keep their objects; empty: nowhere.",
							   "It belongs to the server's operating-system user, nobody else may write to it, and it lies outside of the data directory.",
							   &archive_directory, "", PGC_SIGHUP,
							   GUC_SUPERUSER_ONLY, NULL, NULL, NULL);
}

/*
 * What of the store's directory lies below the setting's: "" or "a/b". NULL when
 * it lies elsewhere.
 */
static const char *
below_root(const char *directory)
{
	size_t		len = strlen(archive_directory);

	while (len > 1 && archive_directory[len - 1] == '/')
		len--;
	if (directory == NULL)
		return "";
	if (!is_absolute_path(directory))
		return directory;
	if (strncmp(directory, archive_directory, len) != 0 ||
		(directory[len] != '/' && directory[len] != '\0'))
		return NULL;
	directory += len;
	while (*directory == '/')
		directory++;
	return directory;
}

/* Names separated by single slashes, of harmless characters. */
static bool
path_is_plain(const char *path)
{
	const char *name = path;

	if (strlen(path) > PLACE_PATH_BYTES)
		return false;
	for (const char *p = path;; p++)
	{
		if (*p != '\0' && *p != '/')
		{
			if (strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
					   "0123456789_=.-", *p) == NULL)
				return false;
			continue;
		}
		if (p - name > PLACE_NAME_BYTES || p == name || name[0] == '.')
			return false;
		if (*p == '\0')
			return true;
		name = p + 1;
	}
}

/* The path of an object from the setting's directory on, or NULL. */
static char *
object_path(const FileOptions *o, const char *object)
{
	const char *below = below_root(o->directory);
	char	   *path;
	size_t		len;

	if (below == NULL)
		return NULL;
	len = strlen(below);
	while (len > 0 && below[len - 1] == '/')
		len--;
	path = psprintf("%.*s%s%s", (int) len, below, len > 0 ? "/" : "", object);
	return path_is_plain(path) ? path : NULL;
}

static void
file_check(const StoreOptions *options, const char *what)
{
	const FileOptions *o = (const FileOptions *) options;

	if (archive_directory[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("%s cannot keep files: %s is not set", what, SETTING),
				 errhint("Set it to a directory of the server's operating-system user, outside of the data directory, and reload.")));
	if (below_root(o->directory) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("option \"directory\" of %s lies outside of %s",
						what, SETTING)));
	if (object_path(o, psprintf("%sx", options->prefix)) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("options \"directory\" and \"prefix\" of %s must be names separated by \"/\"",
						what),
				 errdetail("A name has 1 to %d letters of the English alphabet, digits, and any of _ = . - and does not begin with a dot.",
						   PLACE_NAME_BYTES)));
}

/* Open the directory of an object. finish() follows, come what may. */
static bool
open_place(Place *place, const Store *store, const char *object, bool make)
{
	const char *path = object_path((const FileOptions *) store->options,
								   object);

	if (path == NULL)
		store_fail(store, ERRCODE_MLINT_CONFIGURATION, NULL,
				   "its directory does not lie below " SETTING);
	return place_open(place, archive_directory, path, make, 0);
}

/* Close, and raise what went wrong. */
static void
finish(Place *place, const Store *store)
{
	place_close(place);
	if (place->fault == NULL)
		return;
	if (place->error)
		store_fail(store, ERRCODE_IO_ERROR, NULL, "below " SETTING ", %s: %s",
				   place->fault, strerror(place->error));
	store_fail(store, ERRCODE_MLINT_CONFIGURATION, NULL,
			   SETTING " cannot be used: %s", place->fault);
}

/* Fill a file with what the source gives, which may raise. */
static bool
fill(Place *place, int fd, int64 size, StoreSource source, void *arg)
{
	size_t		piece = Min(size, PIECE_BYTES);
	char	   *buffer = palloc(Max(piece, 1));

	for (int64 at = 0; at < size; at += piece)
	{
		piece = Min(size - at, PIECE_BYTES);
		CHECK_FOR_INTERRUPTS();
		source(buffer, piece, arg);
		if (!place_write(place, fd, buffer, piece))
			return false;
	}
	pfree(buffer);
	if (fsync(fd) != 0)
		return place_fail(place, "could not flush", errno);
	INJECTION("archive-file-written");
	return true;
}

/* The file, new, in place of what was there. */
static bool
replace(Place *place, int fd, int64 size, StoreSource source, void *arg)
{
	if (!fill(place, fd, size, source, arg) || !place_rename(place))
		return false;
	INJECTION("archive-file-renamed");
	return true;
}

static void
file_put(Store *store, const char *object, int64 size, StoreSource source,
		 void *arg)
{
	Place		place;
	volatile int fd = -1;

	if (open_place(&place, store, object, true))
		fd = place_create(&place);
	if (fd >= 0)
	{
		PG_TRY();
		{
			if (!replace(&place, fd, size, source, arg))
				(void) unlinkat(place.fd, place.temporary, 0);
		}
		PG_CATCH();
		{
			(void) unlinkat(place.fd, place.temporary, 0);
			(void) close(fd);
			place_close(&place);
			PG_RE_THROW();
		}
		PG_END_TRY();
		(void) close(fd);
	}
	finish(&place, store);
}

static void
file_get(Store *store, const char *object, int64 offset, size_t len,
		 void *buffer)
{
	Place		place;
	size_t		got = 0;

	if (open_place(&place, store, object, false))
	{
		int			fd = openat(place.fd, place.name,
								O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);

		if (fd < 0)
			(void) place_fail(&place, "could not open the object", errno);
		while (fd >= 0 && got < len && place.fault == NULL)
		{
			ssize_t		n = pread(fd, (char *) buffer + got, len - got,
								  offset + got);

			if (n > 0)
				got += n;
			else if (n == 0)
				(void) place_fail(&place, "the object is shorter than it was", 0);
			else if (errno != EINTR)
				(void) place_fail(&place, "could not read the object", errno);
		}
		if (fd >= 0)
			(void) close(fd);
	}
	finish(&place, store);
}

static void
file_delete(Store *store, const char *object)
{
	Place		place;

	if (open_place(&place, store, object, false))
		(void) place_remove(&place);
	else if (place_absent(&place))
		place.fault = NULL;
	finish(&place, store);
}

static char *
file_place(Store *store)
{
	const FileOptions *o = (const FileOptions *) store->options;

	return psprintf("files below %s%s%s", SETTING, o->directory ? ", in " : "",
					o->directory ? o->directory : "");
}

const StoreKind store_file = {
	.base.name = "file",
	.base.help = "Files below mlint.archive_directory",
	.base.options = file_options,
	.base.options_size = sizeof(FileOptions),
	.check = file_check,
	.put = file_put,
	.get = file_get,
	.delete = file_delete,
	.place = file_place,
};
