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
	if (!place_path_valid(path))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("the path of a mount must be relative, of names separated by \"/\""),
				 errdetail("A name has 1 to %d bytes, no control character, and does not begin with a dot.",
						   PLACE_NAME_BYTES)));
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
	place_finish(&place, "mlint.secret_mount_directory", psprintf("secret mount \"%s\"", path));
	return pstrdup(state);
}

char *
mount_file_write(const char *path, int mode, const char *data, size_t len)
{
	Place		place;
	struct stat st;
	char		state[256] = "";

	if (place_open(&place, directory, path, true, DIRECTORY_MODE) &&
		place_put(&place, mode, data, len))
	{
		/* Renaming has changed what it is known by. */
		if (fstatat(place.fd, place.name, &st, AT_SYMLINK_NOFOLLOW) == 0)
			describe(&st, state, sizeof(state));
		else
			(void) place_fail(&place, "could not look at the file", errno);
	}
	place_finish(&place, "mlint.secret_mount_directory", psprintf("secret mount \"%s\"", path));
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
	place_finish(&place, "mlint.secret_mount_directory", psprintf("secret mount \"%s\"", path));
}
