/*
 * memcheck.h: what PostgreSQL, built with USE_VALGRIND, tells valgrind of its
 * memory, told to AddressSanitizer too.
 *
 * PostgreSQL takes memory from malloc() in large blocks and cuts them up, so
 * that neither sees where a piece ends or that it has been freed; with
 * USE_VALGRIND it says so. This file stands before valgrind's own of the same
 * name, passes all on to that, and to AddressSanitizer where its library is in
 * the process (the names are weak: elsewhere nothing happens). So one build of
 * the server serves both, and only mlint itself need be instrumented.
 */
#include_next <valgrind/memcheck.h>
#include <stddef.h>

extern void __asan_poison_memory_region(void const volatile *, size_t)
	__attribute__((weak));
extern void __asan_unpoison_memory_region(void const volatile *, size_t)
	__attribute__((weak));

static inline void
memory_noaccess(void const volatile *at, size_t size)
{
	(void) VALGRIND_MAKE_MEM_NOACCESS(at, size);
	if (__asan_poison_memory_region)
		__asan_poison_memory_region(at, size);
}

static inline void
memory_access(void const volatile *at, size_t size)
{
	if (__asan_unpoison_memory_region)
		__asan_unpoison_memory_region(at, size);
}

static inline void
memory_undefined(void const volatile *at, size_t size)
{
	(void) VALGRIND_MAKE_MEM_UNDEFINED(at, size);
	memory_access(at, size);
}

static inline void
memory_defined(void const volatile *at, size_t size)
{
	(void) VALGRIND_MAKE_MEM_DEFINED(at, size);
	memory_access(at, size);
}

static inline void
memory_alloc(const void *pool, const void *at, size_t size)
{
	VALGRIND_MEMPOOL_ALLOC(pool, at, size);
	memory_access(at, size);
}

static inline void
memory_change(const void *pool, const void *before, const void *at,
			  size_t size)
{
	VALGRIND_MEMPOOL_CHANGE(pool, before, at, size);
	memory_access(at, size);
}

#undef VALGRIND_MAKE_MEM_NOACCESS
#undef VALGRIND_MAKE_MEM_UNDEFINED
#undef VALGRIND_MAKE_MEM_DEFINED
#undef VALGRIND_MEMPOOL_ALLOC
#undef VALGRIND_MEMPOOL_CHANGE
#define VALGRIND_MAKE_MEM_NOACCESS memory_noaccess
#define VALGRIND_MAKE_MEM_UNDEFINED memory_undefined
#define VALGRIND_MAKE_MEM_DEFINED memory_defined
#define VALGRIND_MEMPOOL_ALLOC memory_alloc
#define VALGRIND_MEMPOOL_CHANGE memory_change
