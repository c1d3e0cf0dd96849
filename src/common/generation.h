/*
 * generation.h
 *		How a worker notices that what it has cached is stale.
 *
 * mlint.generation has a row for each room whose rows workers keep in memory.
 * Whoever changes such rows bumps the number in the same transaction; a
 * worker that finds another number than at its last look reads again.
 */
#ifndef MLINT_GENERATION_H
#define MLINT_GENERATION_H

/*
 * Within an owner scope. The row stays locked until the transaction ends.
 * Returns the new number.
 */
extern int64 generation_bump(const char *room);

#endif
