/*
 * place.c
 *		Files below a directory that a setting names; see place.h.
 *
 * A file is written beside its place, flushed, renamed, and its directory is
 * flushed too. The other name is always the same one, so what a crash leaves is
 * found and replaced by the next attempt, or removed with the file.
 */
#include "postgres.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <unistd.h>

#include "common/crypto.h"
#include "common/errors.h"
#include "common/place.h"
#include "miscadmin.h"

bool
place_path_valid(const char *path)
{
	const char *name = path;

	if (strlen(path) > PLACE_PATH_BYTES)
		return false;
	for (const char *p = path;; p++)
	{
		if (*p == '/' || *p == '\0')
		{
			if (p == name || p - name > PLACE_NAME_BYTES || name[0] == '.')
				return false;
			if (*p == '\0')
				return true;
			name = p + 1;
		}
		else if ((unsigned char) *p < ' ' || *p == 0x7f)
			return false;
	}
}

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
	place_name(place, name);
	return true;
}

void
place_name(Place *place, const char *name)
{
	strlcpy(place->name, name, sizeof(place->name));
	snprintf(place->temporary, sizeof(place->temporary), ".%s.mlint", name);
}

bool
place_open_directory(Place *place, const char *directory, const char *name)
{
	struct stat st;

	memset(place, 0, sizeof(*place));
	place->fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (place->fd < 0 || fstat(place->fd, &st) != 0)
		return place_fail(place, "its directory could not be opened", errno);
	if (st.st_uid != geteuid())
		return place_fail(place, "its directory does not belong to the server's operating-system user", 0);
	if (st.st_mode & (S_IWGRP | S_IWOTH))
		return place_fail(place, "others may write to its directory", 0);
	place_name(place, name);
	return true;
}

void
place_close(Place *place)
{
	if (place->fd >= 0)
		(void) close(place->fd);
	place->fd = -1;
}

void
place_finish(Place *place, const char *setting, const char *what)
{
	place_close(place);
	if (place->fault == NULL)
		return;
	errno = place->error;
	if (place->error)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("%s: %s: %m", what, place->fault)));
	ereport(ERROR,
			(errcode(ERRCODE_MLINT_CONFIGURATION),
			 errmsg("%s cannot be used for %s: %s", setting, what,
					place->fault),
			 errhint("It is a directory of the server's operating-system user, to which nobody else may write, outside of the data directory.")));
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

bool
place_put(Place *place, mode_t mode, const char *data, size_t len)
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
	(void) close(fd);
	ok = ok && place_rename(place);
	if (!ok)
		(void) unlinkat(place->fd, place->temporary, 0);
	return ok;
}

bool
place_holds(const Place *place, const char *data, size_t len)
{
	int			fd = openat(place->fd, place->name,
							O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC);
	struct stat st;
	char		piece[4096];
	ssize_t		n = 0;
	bool		same = fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) &&
	st.st_size == len;

	while (same && len > 0)
	{
		n = read(fd, piece, Min(len, sizeof(piece)));
		same = n > 0 && memcmp(piece, data, n) == 0;
		data += n;
		len -= n;
	}
	crypto_wipe(piece, sizeof(piece));
	if (fd >= 0)
		(void) close(fd);
	return same;
}

/* ---- files that change together ---- */

/* ".name.a" or ".name.b" */
typedef char PairName[PLACE_NAME_BYTES + 4];

static void
pair_name(const Place *place, char which, PairName name)
{
	snprintf(name, sizeof(PairName), ".%s.%c", place->name, which);
}

/* Also: which of the two does the link lead to? */
bool
place_pair_look(Place *place, bool replace)
{
	PairName	target;
	PairName	a;
	PairName	b;
	ssize_t		n = readlinkat(place->fd, place->name, target,
							   sizeof(target));
	struct stat st;

	place->used = 0;
	if (n < 0 && errno == ENOENT)
		return true;
	if (n < 0 && errno == EINVAL)
		return (replace && fstatat(place->fd, place->name, &st,
								   AT_SYMLINK_NOFOLLOW) == 0 &&
				S_ISREG(st.st_mode)) ||
			place_fail(place, "there is something else in its place", 0);
	if (n < 0)
		return place_fail(place, "could not look at what is in its place",
						  errno);
	if (n < (ssize_t) sizeof(target))
		target[n] = '\0';
	pair_name(place, 'a', a);
	pair_name(place, 'b', b);
	if (n < (ssize_t) sizeof(target) && strcmp(target, a) == 0)
		place->used = 'a';
	else if (n < (ssize_t) sizeof(target) && strcmp(target, b) == 0)
		place->used = 'b';
	else
		return place_fail(place, "there is a link of somebody else's in its place",
						  0);
	return true;
}

/* A directory that has no directories in it. None is no failure. */
static bool
remove_directory(Place *place, const char *name)
{
	int			fd = openat(place->fd, name,
							O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	DIR		   *dir;
	struct dirent *entry;

	if (fd < 0 && errno == ENOENT)
		return true;
	dir = fd < 0 ? NULL : fdopendir(fd);
	if (dir == NULL)
	{
		(void) place_fail(place, "could not open a directory of before",
						  errno);
		if (fd >= 0)
			(void) close(fd);
		return false;
	}
	while ((entry = readdir(dir)) != NULL)
	{
		if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
			(void) unlinkat(fd, entry->d_name, 0);
	}
	(void) closedir(dir);
	if (unlinkat(place->fd, name, AT_REMOVEDIR) != 0)
		return place_fail(place, "could not remove a directory of before",
						  errno);
	(void) fsync(place->fd);
	return true;
}

bool
place_pair_open(Place *place, bool replace, Place *inside)
{
	PairName	name;

	memset(inside, 0, sizeof(*inside));
	inside->fd = -1;
	if (!place_pair_look(place, replace))
		return false;
	inside->used = place->used == 'a' ? 'b' : 'a';
	pair_name(place, inside->used, name);
	if (!remove_directory(place, name))
		return false;
	if (mkdirat(place->fd, name, S_IRWXU) != 0)
		return place_fail(place, "could not make a directory", errno);
	inside->fd = openat(place->fd, name,
						O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (inside->fd < 0)
		return place_fail(place, "could not open a directory", errno);
	if (place->mode != 0 && fchmod(inside->fd, place->mode) != 0)
		return place_fail(place, "could not set the mode of a directory",
						  errno);
	return true;
}

bool
place_pair_switch(Place *place, Place *inside)
{
	PairName	name;

	pair_name(place, inside->used, name);
	if (unlinkat(place->fd, place->temporary, 0) != 0 && errno != ENOENT)
		return place_fail(place, "could not remove what a crash has left",
						  errno);
	if (fsync(inside->fd) != 0)
		return place_fail(place, "could not flush a directory", errno);
	if (symlinkat(name, place->fd, place->temporary) != 0)
		return place_fail(place, "could not make a link", errno);
	return place_rename(place);
}

bool
place_pair_clean(Place *place)
{
	PairName	name;

	if (place->used == 0)
		return true;
	pair_name(place, place->used, name);
	return remove_directory(place, name);
}

bool
place_pair_remove(Place *place)
{
	PairName	a;
	PairName	b;

	pair_name(place, 'a', a);
	pair_name(place, 'b', b);
	return remove_directory(place, a) && remove_directory(place, b);
}
