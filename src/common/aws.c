/*
 * aws.c
 *		What options say of an access to AWS, or to a service like it.
 */
#include "postgres.h"

#include "common/aws.h"
#include "common/errors.h"

void
aws_region_check(const char *region, const char *option, const char *what)
{
	if (region[0] == '\0' ||
		strspn(region, "abcdefghijklmnopqrstuvwxyz0123456789-") !=
		strlen(region))
		ereport(ERROR,
				(errcode(ERRCODE_MLINT_CONFIGURATION),
				 errmsg("option \"%s\" of %s is not the name of a region",
						option, what),
				 errhint("Write it like eu-central-1.")));
}

char *
aws_url(const char *service, const char *region)
{
	return psprintf("https://%s.%s.amazonaws.com%s", service, region,
					strncmp(region, "cn-", 3) == 0 ? ".cn" : "");
}
