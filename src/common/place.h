/*
 * place.h
 *		Files below a directory that a setting names, and nowhere else.
 *
 * Whoever can put a link, or another directory, in the way of what we write
 * could have us write elsewhere, as the user that the server runs as. So the
 * directory must be the server's own (or root's) and nobody else's to write
 * to; from its descriptor on every name is opened by itself, without following
 * links; and neither it nor anything on the way may be the data directory.
 *
 * Descriptors that openat() has made are not in PostgreSQL's care, so nothing
 * here raises: what went wrong is noted, and raised by the caller when all is
 * closed.
 */
#ifndef MLINT_PLACE_H
#define MLINT_PLACE_H

#include <sys/stat.h>

#define PLACE_NAME_BYTES	200
#define PLACE_PATH_BYTES	1000

/* The directory that a file is in. */
typedef struct Place
{
	int			fd;				/* -1: there is none */
	mode_t		mode;			/* of directories that are made; 0: 0700 */
	char		name[PLACE_NAME_BYTES + 1]; /* of the file in it */
	char		temporary[PLACE_NAME_BYTES + 16];	/* of the one beside it,
													 * the same each time */
	const char *fault;			/* what was being done when it went wrong */
	int			error;			/* and errno; 0: it is a matter of policy */
} Place;

/*
 * Open the directory of a path below root: names separated by single slashes,
 * none of which begins with a dot or is longer than PLACE_NAME_BYTES; that is
 * the caller's to check. With "make" directories that are missing are made, and
 * have of the root's mode what "mode" has (0: they are the owner's alone).
 * place_close() follows, come what may.
 */
extern bool place_open(Place *place, const char *root, const char *path,
					   bool make, mode_t mode);

/* Close the directory. What went wrong stays noted. */
extern void place_close(Place *place);

/* Note what went wrong, the first time; always false. */
extern bool place_fail(Place *place, const char *fault, int error);

/* Is all that went wrong that a directory on the way is not there? */
extern bool place_absent(const Place *place);

/*
 * The file beside, new and empty, whatever a crash has left of it: its
 * descriptor, or -1.
 */
extern int	place_create(Place *place);

extern bool place_write(Place *place, int fd, const char *data, size_t len);

/* Put the file beside, which is on disk, in its place; also on disk. */
extern bool place_rename(Place *place);

/* Remove the file, and the one beside it. No file is no failure. */
extern bool place_remove(Place *place);

#endif
