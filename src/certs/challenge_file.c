/*
 * challenge_file.c
 *		http-01 through a webroot; see challenge_file.h.
 *
 * Files are written as place.h does it, so nobody who can write to a webroot of
 * another user's can have us write elsewhere. A web server must read them: files
 * and the directories that we make are readable for whom
 * mlint.certificate_directory is, and writable for nobody else. place.h leaves
 * it to us that no name begins with a dot; ".well-known" is the one that may.
 */
#include "postgres.h"

#include <sys/stat.h>

#include "certs/certs.h"
#include "certs/challenge_file.h"
#include "certs/http_challenge.h"
#include "common/errors.h"
#include "common/place.h"

#define BELOW				".well-known/acme-challenge"
/* What directories that we make have of the topmost one's mode. */
#define DIRECTORY_MODE		02755
/* And files. */
#define READABLE			(S_IRGRP | S_IROTH)

void
challenge_file_check(const char *webroot)
{
	const char *name = webroot;
	bool		ok = strlen(webroot) + sizeof(BELOW) +
	HTTP_CHALLENGE_TOKEN_MAX + 2 < PLACE_PATH_BYTES;

	for (const char *p = webroot; ok; p++)
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
				 errmsg("the webroot of a solver must be a relative path, of names separated by \"/\""),
				 errdetail("A name has 1 to %d bytes, no control character, and does not begin with a dot.",
						   PLACE_NAME_BYTES),
				 errhint("Write it as file:directory; it lies below mlint.certificate_directory.")));
	if (certificate_directory == NULL || certificate_directory[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("mlint.certificate_directory is not set"),
				 errhint("Set it in postgresql.conf to a directory of the server's operating-system user, and reload.")));
}

/* The token is the authority's, so it is looked at before it names a file. */
static char *
path_of(const char *webroot, const char *token)
{
	size_t		len = strlen(token);

	challenge_file_check(webroot);
	if (len == 0 || len > HTTP_CHALLENGE_TOKEN_MAX ||
		strspn(token, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
			   "0123456789_-") != len)
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_SERIALIZATION),
				 errmsg("the authority's token is none")));
	return psprintf("%s/" BELOW "/%s", webroot, token);
}

void
challenge_file_write(const char *webroot, const char *token,
					 const char *value)
{
	char	   *path = path_of(webroot, token);
	Place		place;

	if (place_open(&place, certificate_directory, path, true, DIRECTORY_MODE))
		(void) place_put(&place, S_IRUSR | S_IWUSR | (place.mode & READABLE),
						 value, strlen(value));
	place_finish(&place, "mlint.certificate_directory", psprintf("challenge \"%s\"", path));
}

void
challenge_file_remove(const char *webroot, const char *token)
{
	char	   *path = path_of(webroot, token);
	Place		place;

	if (place_open(&place, certificate_directory, path, false,
				   DIRECTORY_MODE))
		(void) place_remove(&place);
	else if (place_absent(&place))
		place.fault = NULL;
	place_finish(&place, "mlint.certificate_directory", psprintf("challenge \"%s\"", path));
}
