/*
 * place.c
 *		Files below a directory that a setting names; see place.h.
 *
 * A file is written beside its place, flushed, renamed, and its directory is
 * flushed too. The other name is always the same one, so what a crash leaves is
 * found and replaced by the next attempt, or removed with the file.
 */
#include "postgres.h"

#include <fcntl.h>
#include <limits.h>
#include <unistd.h>

#include "common/place.h"
#include "miscadmin.h"

bool
place_fail(Place *place, const char *fault, int error)
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
in_data_directory(const char *root)
{
	char		ours[PATH_MAX];
	char		data[PATH_MAX];

	return realpath(root, ours) == NULL || realpath(DataDir, data) == NULL ||
		path_is_prefix_of_path(data, ours);
}

/* Open the directory below which all is, if it is fit. */
static bool
open_root(Place *place, const char *root, mode_t mode)
{
	struct stat st;

	if (root == NULL || root[0] == '\0')
		return place_fail(place, "it is not set", 0);
	if (!is_absolute_path(root))
		return place_fail(place, "its path is not absolute", 0);
	place->fd = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (place->fd < 0 || fstat(place->fd, &st) != 0)
		return place_fail(place, "it could not be opened", errno);
	if (st.st_uid != geteuid() && st.st_uid != 0)
		return place_fail(place, "it belongs neither to the server's operating-system user nor to root", 0);
	if (st.st_mode & (S_IWGRP | S_IWOTH))
		return place_fail(place, "others than its owner may write to it", 0);
	place->mode = st.st_mode & mode;
	if (in_data_directory(root))
		return place_fail(place, "it lies in the data directory, which backups copy",
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
		if (fd >= 0 && place->mode != 0 && fchmod(fd, place->mode) != 0)
			(void) place_fail(place, "could not set the mode of a directory",
							  errno);
	}
	if (fd < 0)
		return place_fail(place, errno == ELOOP || errno == ENOTDIR ?
						  "there is something else than a directory on the way" :
						  "a directory on the way could not be opened", errno);
	(void) close(place->fd);
	place->fd = fd;
	if (fstat(fd, &st) != 0)
		return place_fail(place, "a directory on the way could not be looked at",
						  errno);
	if (is_data_directory(&st))
		return place_fail(place, "the way leads into the data directory", 0);
	if (st.st_uid != geteuid() || (st.st_mode & (S_IWGRP | S_IWOTH)))
		return place_fail(place, "there is a directory on the way that others may write to",
						  0);
	return true;
}

bool
place_open(Place *place, const char *root, const char *path, bool make,
		   mode_t mode)
{
	const char *name = path;
	const char *slash;

	memset(place, 0, sizeof(*place));
	place->fd = -1;
	if (!open_root(place, root, mode))
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

void
place_close(Place *place)
{
	if (place->fd >= 0)
		(void) close(place->fd);
	place->fd = -1;
}

/* It was a directory below the root that could not be opened. */
bool
place_absent(const Place *place)
{
	return place->error == ENOENT && place->fd >= 0;
}

int
place_create(Place *place)
{
	int			fd;

	if (unlinkat(place->fd, place->temporary, 0) != 0 && errno != ENOENT)
	{
		(void) place_fail(place, "could not remove what a crash has left",
						  errno);
		return -1;
	}
	fd = openat(place->fd, place->temporary,
				O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
				S_IRUSR | S_IWUSR);
	if (fd < 0)
		(void) place_fail(place, "could not create a file", errno);
	return fd;
}

bool
place_write(Place *place, int fd, const char *data, size_t len)
{
	while (len > 0)
	{
		ssize_t		n = write(fd, data, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return place_fail(place, "could not write", n < 0 ? errno : ENOSPC);
		data += n;
		len -= n;
	}
	return true;
}

bool
place_rename(Place *place)
{
	if (renameat(place->fd, place->temporary, place->fd, place->name) != 0)
		return place_fail(place, "could not put the file in its place", errno);
	if (fsync(place->fd) != 0)
		return place_fail(place, "could not flush the directory", errno);
	return true;
}

bool
place_remove(Place *place)
{
	(void) unlinkat(place->fd, place->temporary, 0);
	if (unlinkat(place->fd, place->name, 0) == 0)
		(void) fsync(place->fd);
	else if (errno != ENOENT)
		return place_fail(place, "could not remove the file", errno);
	return true;
}
