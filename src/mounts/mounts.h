/*
 * mounts.h
 *		Secrets as files, for programs that read files.
 */
#ifndef MLINT_MOUNTS_H
#define MLINT_MOUNTS_H

#include "lib/stringinfo.h"

/* Settings. Called once by _PG_init. */
extern void mounts_init(void);

/*
 * ---- mountfile.c: files below mlint.secret_mount_directory ----
 *
 * A path is relative, of names separated by "/". It is walked from the
 * directory's descriptor, a name at a time, and no symbolic link is followed.
 * All raise ERRCODE_MLINT_CONFIGURATION when the directory or the path is not
 * fit, and the error of the file system otherwise.
 */
extern void mount_path_check(const char *path);

/* The directory as set; NULL: mounts are off. */
extern const char *mount_directory(void);

/*
 * What identifies the file as it is now, palloc'd; "" when there is none. Any
 * change of content, mode, owner or place changes it.
 */
extern char *mount_file_state(const char *path);

/*
 * Write, durably and at once: readers find the old file or the new one.
 * Returns its state.
 */
extern char *mount_file_write(const char *path, int mode, const char *data,
							  size_t len);
extern void mount_file_remove(const char *path);

/* Define the setting. */
extern void mount_define_settings(void);

/* ---- dotenv.c ---- */

/* The name of the variable for a secret, palloc'd. */
extern char *dotenv_variable(const char *name);

/*
 * Append "NAME=value\n", quoted so that a POSIX shell reads the same bytes.
 * The value is valid UTF-8 without zero bytes.
 */
extern void dotenv_append(StringInfo out, const char *name,
						  const char *value, size_t len);

#endif
