/*
 * mountfile.c
 *		Files below mlint.secret_mount_directory, and nowhere else.
 *
 * Whoever can put a link, or another directory, in the way of what we write
 * could have us write elsewhere, as the user that the server runs as. So the
 * directory must be the server's own (or root's) and nobody else's to write
 * to; from its descriptor on every name is opened by itself, without following
 * links; and neither it nor anything on the way may be the data directory.
 *
 * A file is written beside its place under a name of its own, gets exactly its
 * mode, is flushed, renamed, and its directory is flushed too. The name is
 * always the same, so what a crash leaves is found and removed by the next.
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/errors.h"
#include "miscadmin.h"
#include "mounts/mounts.h"
#include "storage/fd.h"
#include "utils/guc.h"

#define NAME_BYTES_MAX		200
#define PATH_BYTES_MAX		1000
/* What directories that we make have of the topmost one's mode. */
#define DIRECTORY_MODE		02755

static char *directory = NULL;

/*
 * The directory that a file is in. Descriptors that openat() has made are not
 * in PostgreSQL's care, so nothing raises while one is open: what went wrong
 * is noted, and raised when all is closed.
 */
typedef struct Place
{
	int			fd;				/* -1: there is none */
	mode_t		mode;			/* of directories that are made */
	char		name[NAME_BYTES_MAX + 1];	/* of the file in it */
	char		temporary[NAME_BYTES_MAX + 16]; /* of the one beside it */
	const char *fault;			/* what was being done when it went wrong */
	int			error;			/* and errno; 0: it is a matter of policy */
} Place;

void
mount_define_settings(void)
{
	DefineCustomStringVariable("mlint.secret_mount_directory",
							   "Directory below which mlint.secret_mount_create writes secrets as files; empty: nowhere.",
							   "It belongs to the server's operating-system user, nobody else may write to it, and it lies outside of the data directory. Best is a file system in memory.",
							   &directory, "", PGC_SIGHUP, 0,
							   NULL, NULL, NULL);
}

const char *
mount_directory(void)
{
	return directory && directory[0] ? directory : NULL;
}

void
mount_path_check(const char *path)
{
	const char *name = path;
	bool		ok = strlen(path) <= PATH_BYTES_MAX;

	for (const char *p = path; ok; p++)
	{
		if (*p && *p != '/')
		{
			ok = (unsigned char) *p >= ' ' && *p != 0x7f;
			continue;
		}
		ok = p - name >= 1 && p - name <= NAME_BYTES_MAX && name[0] != '.';
		if (*p == '\0')
			break;
		name = p + 1;
	}
	if (!ok)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("the path of a mount must be relative, of names separated by \"/\""),
				 errdetail("A name has 1 to %d bytes, no control character, and does not begin with a dot.",
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

/* Is this open directory the data directory? */
static bool
is_data_directory(const struct stat *st)
{
	struct stat data;

	return stat(DataDir, &data) == 0 && data.st_dev == st->st_dev &&
		data.st_ino == st->st_ino;
}

/* Does the directory lie in the data directory? */
static bool
in_data_directory(void)
{
	char		ours[PATH_MAX];
	char		data[PATH_MAX];
	size_t		len;

	if (realpath(directory, ours) == NULL || realpath(DataDir, data) == NULL)
		return true;
	len = strlen(data);
	return strncmp(ours, data, len) == 0 &&
		(ours[len] == '\0' || ours[len] == '/');
}

/* Open mlint.secret_mount_directory, if it is fit. */
static bool
open_root(Place *place)
{
	struct stat st;

	if (mount_directory() == NULL)
		return fail(place, "it is not set", 0);
	if (!is_absolute_path(directory))
		return fail(place, "its path is not absolute", 0);
	place->fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (place->fd < 0 || fstat(place->fd, &st) != 0)
		return fail(place, "it could not be opened", errno);
	if (st.st_uid != geteuid() && st.st_uid != 0)
		return fail(place, "it belongs neither to the server's operating-system user nor to root", 0);
	if (st.st_mode & (S_IWGRP | S_IWOTH))
		return fail(place, "others than its owner may write to it", 0);
	place->mode = st.st_mode & DIRECTORY_MODE;
	if (in_data_directory())
		return fail(place, "it lies in the data directory, which backups copy",
					0);
	return true;
}

/* Go down into a directory, which is made if it is missing and wanted. */
static bool
descend(Place *place, const char *name, bool make)
{
	struct stat st;
	int			flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
	int			fd = openat(place->fd, name, flags);

	if (fd < 0 && errno == ENOENT && make)
	{
		if (mkdirat(place->fd, name, S_IRWXU) == 0)
			(void) fsync(place->fd);
		fd = openat(place->fd, name, flags);
		if (fd >= 0 && fchmod(fd, place->mode) != 0)
			(void) fail(place, "could not set the mode of a directory", errno);
	}
	if (fd < 0)
		return fail(place, errno == ELOOP || errno == ENOTDIR ?
					"there is something else than a directory on the way" :
					"a directory on the way could not be opened", errno);
	(void) close(place->fd);
	place->fd = fd;
	if (fstat(fd, &st) != 0)
		return fail(place, "a directory on the way could not be looked at",
					errno);
	if (is_data_directory(&st))
		return fail(place, "the way leads into the data directory", 0);
	if (st.st_uid != geteuid() || (st.st_mode & (S_IWGRP | S_IWOTH)))
		return fail(place, "there is a directory on the way that others may write to",
					0);
	return true;
}

/* Open the directory of a path, which mount_path_check() has let pass. */
static bool
open_place(Place *place, const char *path, bool make)
{
	const char *name = path;
	const char *slash;

	memset(place, 0, sizeof(*place));
	place->fd = -1;
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
close_place(Place *place, const char *path)
{
	if (place->fd >= 0)
		(void) close(place->fd);
	if (place->fault == NULL)
		return;
	errno = place->error;
	if (place->error)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("secret mount \"%s\": %s: %m", path, place->fault)));
	ereport(ERROR,
			(errcode(ERRCODE_MLINT_CONFIGURATION),
			 errmsg("mlint.secret_mount_directory cannot be used for \"%s\": %s",
					path, place->fault),
			 errhint("It is a directory of the server's operating-system user, to which nobody else may write, outside of the data directory.")));
}

/* What a file is known by. */
static void
describe(const struct stat *st, char *out, size_t size)
{
	snprintf(out, size, "%llu:%llu:%lld:%lld.%09ld:%lld.%09ld:%o:%u",
			 (unsigned long long) st->st_dev,
			 (unsigned long long) st->st_ino,
			 (long long) st->st_size,
			 (long long) st->st_mtim.tv_sec, (long) st->st_mtim.tv_nsec,
			 (long long) st->st_ctim.tv_sec, (long) st->st_ctim.tv_nsec,
			 (unsigned) st->st_mode, (unsigned) st->st_uid);
}

char *
mount_file_state(const char *path)
{
	Place		place;
	struct stat st;
	char		state[256] = "";

	if (open_place(&place, path, false))
	{
		if (fstatat(place.fd, place.name, &st, AT_SYMLINK_NOFOLLOW) == 0)
			describe(&st, state, sizeof(state));
		else if (errno != ENOENT)
			(void) fail(&place, "could not look at the file", errno);
	}
	else if (place.error == ENOENT && place.fd >= 0)
		place.fault = NULL;
	close_place(&place, path);
	return pstrdup(state);
}

/* All of the data, and the mode, on disk. */
static bool
fill(Place *place, int fd, int mode, const char *data, size_t len)
{
	size_t		done = 0;

	while (done < len)
	{
		ssize_t		n = write(fd, data + done, len - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return fail(place, "could not write", n < 0 ? errno : ENOSPC);
		done += n;
	}
	if (fchmod(fd, mode) != 0)
		return fail(place, "could not set the mode", errno);
	if (fsync(fd) != 0)
		return fail(place, "could not flush", errno);
	return true;
}

/* The file, new, in place of what was there. */
static bool
replace(Place *place, int mode, const char *data, size_t len,
		struct stat *st)
{
	int			fd;
	bool		ok;

	if (unlinkat(place->fd, place->temporary, 0) != 0 && errno != ENOENT)
		return fail(place, "could not remove what a crash has left", errno);
	fd = openat(place->fd, place->temporary,
				O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
				S_IRUSR | S_IWUSR);
	if (fd < 0)
		return fail(place, "could not create", errno);
	ok = fill(place, fd, mode, data, len);
	if (ok && renameat(place->fd, place->temporary, place->fd,
					   place->name) != 0)
		ok = fail(place, "could not put the file in its place", errno);
	if (ok && fsync(place->fd) != 0)
		ok = fail(place, "could not flush the directory", errno);
	/* Renaming has changed what it is known by. */
	if (ok && fstat(fd, st) != 0)
		ok = fail(place, "could not look at the file", errno);
	(void) close(fd);
	if (!ok)
		(void) unlinkat(place->fd, place->temporary, 0);
	return ok;
}

char *
mount_file_write(const char *path, int mode, const char *data, size_t len)
{
	Place		place;
	struct stat st;
	char		state[256] = "";

	if (open_place(&place, path, true) &&
		replace(&place, mode, data, len, &st))
		describe(&st, state, sizeof(state));
	close_place(&place, path);
	return pstrdup(state);
}

void
mount_file_remove(const char *path)
{
	Place		place;

	if (open_place(&place, path, false))
	{
		(void) unlinkat(place.fd, place.temporary, 0);
		if (unlinkat(place.fd, place.name, 0) != 0 && errno != ENOENT)
			(void) fail(&place, "could not remove the file", errno);
		else
			(void) fsync(place.fd);
	}
	else if (place.error == ENOENT && place.fd >= 0)
		place.fault = NULL;
	close_place(&place, path);
}
