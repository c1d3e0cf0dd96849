/*
 * role.h
 *		The roles that rows of ours name, which may be gone.
 */
#ifndef MLINT_ROLE_H
#define MLINT_ROLE_H

extern bool role_exists(Oid role);

/*
 * Raise ERRCODE_UNDEFINED_OBJECT if there is no such role; "did" is what made
 * it the owner ("created the destination").
 */
extern void role_require(Oid role, const char *did);

#endif
