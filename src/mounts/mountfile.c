/*
 * mountfile.c
 *		Files below mlint.secret_mount_directory, and nowhere else (place.h).
 *
 * A file gets exactly its mode before it is renamed into its place.
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/errors.h"
#include "common/place.h"
#include "miscadmin.h"
#include "mounts/mounts.h"
#include "utils/guc.h"

/* What directories that we make have of the topmost one's mode. */
#define DIRECTORY_MODE		02755

static char *directory = NULL;

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
	bool		ok = strlen(path) <= PLACE_PATH_BYTES;

	for (const char *p = path; ok; p++)
	{
		if (*p && *p != '/')
		{
			ok = (unsigned char) *p >= ' ' && *p != 0x7f;
			continue;
		}
		ok = p - name >= 1 && p - name <= PLACE_NAME_BYTES && name[0] != '.';
		if (*p == '\0')
			break;
		name = p + 1;
	}
	if (!ok)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("the path of a mount must be relative, of names separated by \"/\""),
				 errdetail("A name has 1 to %d bytes, no control character, and does not begin with a dot.",
						   PLACE_NAME_BYTES)));
}

/* Close, and raise what went wrong. */
static void
finish(Place *place, const char *path)
{
	place_close(place);
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

	if (place_open(&place, directory, path, false, DIRECTORY_MODE))
	{
		if (fstatat(place.fd, place.name, &st, AT_SYMLINK_NOFOLLOW) == 0)
			describe(&st, state, sizeof(state));
		else if (errno != ENOENT)
			(void) place_fail(&place, "could not look at the file", errno);
	}
	else if (place_absent(&place))
		place.fault = NULL;
	finish(&place, path);
	return pstrdup(state);
}

/* The file, new, in place of what was there. */
static bool
replace(Place *place, int mode, const char *data, size_t len,
		struct stat *st)
{
	int			fd = place_create(place);
	bool		ok;

	if (fd < 0)
		return false;
	ok = place_write(place, fd, data, len);
	if (ok && fchmod(fd, mode) != 0)
		ok = place_fail(place, "could not set the mode", errno);
	if (ok && fsync(fd) != 0)
		ok = place_fail(place, "could not flush", errno);
	ok = ok && place_rename(place);
	/* Renaming has changed what it is known by. */
	if (ok && fstat(fd, st) != 0)
		ok = place_fail(place, "could not look at the file", errno);
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

	if (place_open(&place, directory, path, true, DIRECTORY_MODE) &&
		replace(&place, mode, data, len, &st))
		describe(&st, state, sizeof(state));
	finish(&place, path);
	return pstrdup(state);
}

void
mount_file_remove(const char *path)
{
	Place		place;

	if (place_open(&place, directory, path, false, DIRECTORY_MODE))
		(void) place_remove(&place);
	else if (place_absent(&place))
		place.fault = NULL;
	finish(&place, path);
}
