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
 * here raises but place_finish(): what went wrong is noted, and raised when all is
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
	char		used;			/* of a pair of directories: which is in use;
								 * 0: none */
} Place;

/* Is this a path that place_open() takes? */
extern bool place_path_valid(const char *path);

/*
 * Open the directory of a path below root: names separated by single slashes,
 * none of which begins with a dot or is longer than PLACE_NAME_BYTES; see
 * place_path_valid(). With "make" directories that are missing are made, and
 * have of the root's mode what "mode" has (0: they are the owner's alone).
 * place_close() follows, come what may.
 */
extern bool place_open(Place *place, const char *root, const char *path,
					   bool make, mode_t mode);

/*
 * A file in a directory that is named by its whole path, and may be the data
 * directory. It must be the server's user's, and nobody else's to write to.
 */
extern bool place_open_directory(Place *place, const char *directory,
								 const char *name);

/* Another file in the same directory. */
extern void place_name(Place *place, const char *name);

/* Close the directory. What went wrong stays noted. */
extern void place_close(Place *place);

/*
 * Close it, and raise what went wrong: "what" is what was to be done ('secret
 * mount "x"'), below the directory of which setting.
 */
extern void place_finish(Place *place, const char *setting, const char *what);

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

/* All of these: the file with this content and exactly this mode. */
extern bool place_put(Place *place, mode_t mode, const char *data, size_t len);

/* Is the file there, with just this content? */
extern bool place_holds(const Place *place, const char *data, size_t len);

/* Remove the file, and the one beside it. No file is no failure. */
extern bool place_remove(Place *place);

/*
 * Files that change together: the place's name becomes a link to one of two
 * directories beside it, ".name.a" and ".name.b", which take turns.
 * place_pair_open() makes the one that is not in use, empty, and opens it;
 * place_pair_switch() has the link lead there, which is on disk then;
 * place_pair_clean() removes the one that was in use before. With "replace" a
 * file that is in the link's place may go; anything else there is a failure.
 */
extern bool place_pair_open(Place *place, bool replace, Place *inside);
extern bool place_pair_switch(Place *place, Place *inside);
extern bool place_pair_clean(Place *place);

/*
 * For a file that takes the link's place: is what is there ours to go, in the
 * sense of place_pair_open()? And then, remove both directories.
 */
extern bool place_pair_look(Place *place, bool replace);
extern bool place_pair_remove(Place *place);

#endif
