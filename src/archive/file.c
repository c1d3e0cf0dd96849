/*
 * file.c
 *		Objects as files below mlint.archive_directory, and nowhere else.
 *
 * For a mounted file system that is somebody else's to back up. The directory
 * is the server's own (or root's), nobody else may write to it, and it lies
 * outside of the data directory: else a link that is put in the way of what we
 * write could have us write elsewhere. From its descriptor on every name is
 * opened by itself, without following links, and names come from a small set of
 * characters and never begin with a dot.
 *
 * A file is written beside its place, synced, renamed, and its directory is
 * synced too. The other name is always the same one, so what a crash leaves is
 * found and replaced by the next attempt, or removed with the object.
 */
#include "postgres.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include "archive/store.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/injection.h"
#include "miscadmin.h"
#include "utils/guc.h"

#define SETTING			"mlint.archive_directory"
#define NAME_BYTES_MAX	200
#define PATH_BYTES_MAX	1000
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

/* The directory that a file is in. Nothing raises while it is open. */
typedef struct Place
{
	int			fd;				/* -1: none */
	char		name[NAME_BYTES_MAX + 1];
	char		temporary[NAME_BYTES_MAX + 16];
	const char *fault;			/* what was being done when it went wrong */
	int			error;			/* and errno; 0: it is a matter of policy */
	bool		absent;			/* a directory on the way is not there */
} Place;

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

	if (strlen(path) > PATH_BYTES_MAX)
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
		if (p - name > NAME_BYTES_MAX || p == name || name[0] == '.')
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
						   NAME_BYTES_MAX)));
}

/* Note what went wrong, the first time; always false. */
static bool
fail(Place *place, const char *fault, int error)
{
	if (place->fault == NULL)
	{
		place->fault = fault;
		place->error = error;
	}
	return false;
}

/* Does the directory lie in the data directory? */
static bool
in_data_directory(void)
{
	char		ours[PATH_MAX];
	char		data[PATH_MAX];

	return realpath(archive_directory, ours) == NULL ||
		realpath(DataDir, data) == NULL || path_is_prefix_of_path(data, ours);
}

static bool
fit_to_write(int fd, bool root_may_own)
{
	struct stat st;

	return fstat(fd, &st) == 0 &&
		(st.st_uid == geteuid() || (root_may_own && st.st_uid == 0)) &&
		(st.st_mode & (S_IWGRP | S_IWOTH)) == 0;
}

/* Open the setting's directory, if it is fit. */
static bool
open_root(Place *place)
{
	if (archive_directory[0] == '\0')
		return fail(place, SETTING " is not set", 0);
	if (!is_absolute_path(archive_directory))
		return fail(place, SETTING " is not an absolute path", 0);
	place->fd = open(archive_directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (place->fd < 0)
		return fail(place, "could not open the directory of " SETTING, errno);
	if (!fit_to_write(place->fd, true))
		return fail(place, "the directory of " SETTING " is not the server's, or others may write to it",
					0);
	if (in_data_directory())
		return fail(place, "the directory of " SETTING " lies in the data directory",
					0);
	return true;
}

/* Go down into a directory, which is made if it is missing and wanted. */
static bool
descend(Place *place, const char *name, bool make)
{
	int			flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
	int			fd = openat(place->fd, name, flags);

	if (fd < 0 && errno == ENOENT && make)
	{
		if (mkdirat(place->fd, name, S_IRWXU) == 0)
			(void) fsync(place->fd);
		fd = openat(place->fd, name, flags);
	}
	if (fd < 0)
	{
		place->absent = errno == ENOENT;
		return fail(place, "could not open a directory on the way", errno);
	}
	(void) close(place->fd);
	place->fd = fd;
	if (!fit_to_write(fd, false))
		return fail(place, "there is a directory on the way that is not the server's, or that others may write to",
					0);
	return true;
}

/* Open the directory of an object. close_place() follows, come what may. */
static bool
open_place(Place *place, const Store *store, const char *object, bool make)
{
	const char *name = object_path((const FileOptions *) store->options,
								   object);
	const char *slash;

	memset(place, 0, sizeof(*place));
	place->fd = -1;
	if (name == NULL)
		return fail(place, "its directory does not lie below " SETTING, 0);
	if (!open_root(place))
		return false;
	while ((slash = strchr(name, '/')) != NULL)
	{
		strlcpy(place->name, name, slash - name + 1);
		if (!descend(place, place->name, make))
			return false;
		name = slash + 1;
	}
	strlcpy(place->name, name, sizeof(place->name));
	snprintf(place->temporary, sizeof(place->temporary), ".%s.mlint", name);
	return true;
}

/* Close, and raise what went wrong. */
static void
close_place(Place *place, const Store *store)
{
	if (place->fd >= 0)
		(void) close(place->fd);
	place->fd = -1;
	if (place->fault == NULL)
		return;
	if (place->error)
		store_fail(store, ERRCODE_IO_ERROR, NULL, "%s: %s", place->fault,
				   strerror(place->error));
	store_fail(store, ERRCODE_MLINT_CONFIGURATION, NULL, "%s", place->fault);
}

static bool
write_all(Place *place, int fd, const char *data, size_t len)
{
	while (len > 0)
	{
		ssize_t		n = write(fd, data, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return fail(place, "could not write", n < 0 ? errno : ENOSPC);
		data += n;
		len -= n;
	}
	return true;
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
		if (!write_all(place, fd, buffer, piece))
			return false;
	}
	pfree(buffer);
	if (fsync(fd) != 0)
		return fail(place, "could not flush", errno);
	INJECTION("archive-file-written");
	return true;
}

/* The file, new, in place of what was there. */
static bool
replace(Place *place, int fd, int64 size, StoreSource source, void *arg)
{
	if (!fill(place, fd, size, source, arg))
		return false;
	if (renameat(place->fd, place->temporary, place->fd, place->name) != 0)
		return fail(place, "could not put the file in its place", errno);
	if (fsync(place->fd) != 0)
		return fail(place, "could not flush the directory", errno);
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
	{
		if (unlinkat(place.fd, place.temporary, 0) != 0 && errno != ENOENT)
			(void) fail(&place, "could not remove what a crash has left",
						errno);
		else if ((fd = openat(place.fd, place.temporary,
							  O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW |
							  O_CLOEXEC, S_IRUSR | S_IWUSR)) < 0)
			(void) fail(&place, "could not create a file", errno);
	}
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
			(void) close(place.fd);
			PG_RE_THROW();
		}
		PG_END_TRY();
		(void) close(fd);
	}
	close_place(&place, store);
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
			(void) fail(&place, "could not open the object", errno);
		while (fd >= 0 && got < len && place.fault == NULL)
		{
			ssize_t		n = pread(fd, (char *) buffer + got, len - got,
								  offset + got);

			if (n > 0)
				got += n;
			else if (n == 0)
				(void) fail(&place, "the object is shorter than it was", 0);
			else if (errno != EINTR)
				(void) fail(&place, "could not read the object", errno);
		}
		if (fd >= 0)
			(void) close(fd);
	}
	close_place(&place, store);
}

static void
file_delete(Store *store, const char *object)
{
	Place		place;

	if (open_place(&place, store, object, false))
	{
		(void) unlinkat(place.fd, place.temporary, 0);
		if (unlinkat(place.fd, place.name, 0) == 0)
			(void) fsync(place.fd);
		else if (errno != ENOENT)
			(void) fail(&place, "could not remove the object", errno);
	}
	else if (place.absent)
		place.fault = NULL;
	close_place(&place, store);
}

static char *
file_place(Store *store)
{
	const FileOptions *o = (const FileOptions *) store->options;

	return psprintf("files below %s%s%s", SETTING, o->directory ? ", in " : "",
					o->directory ? o->directory : "");
}

const StoreKind store_file = {
	.name = "file",
	.help = "Files below mlint.archive_directory",
	.options = file_options,
	.options_size = sizeof(FileOptions),
	.check = file_check,
	.put = file_put,
	.get = file_get,
	.delete = file_delete,
	.place = file_place,
};
