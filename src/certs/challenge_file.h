/*
 * challenge_file.h
 *		http-01 through a webroot: the files that a web server serves.
 */
#ifndef MLINT_CHALLENGE_FILE_H
#define MLINT_CHALLENGE_FILE_H

/* Is this a webroot below mlint.certificate_directory? Raises if not. */
extern void challenge_file_check(const char *webroot);

/* <webroot>/.well-known/acme-challenge/<token>, with the value in it. */
extern void challenge_file_write(const char *webroot, const char *token,
								 const char *value);

/* The file goes; the directories stay. None is no failure. */
extern void challenge_file_remove(const char *webroot, const char *token);

#endif
