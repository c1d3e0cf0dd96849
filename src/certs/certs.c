/*
 * certs.c
 *		The settings of the room.
 */
#include "postgres.h"

#include "certs/certs.h"
#include "certs/http_challenge.h"
#include "utils/guc.h"

char	   *certificate_directory;

void
certs_init(void)
{
	DefineCustomStringVariable("mlint.certificate_directory",
							   "Directory below which certificates and their keys, and challenges, are written as files.",
							   "Empty: none are. It must belong to the server's user and be writable for nobody else.",
							   &certificate_directory,
							   "",
							   PGC_SIGHUP,
							   GUC_SUPERUSER_ONLY,
							   NULL, NULL, NULL);
	http_challenge_init();
}
