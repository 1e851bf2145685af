/* Stands in for libnvinfer, libnvinfer_plugin and libnvonnxparser, so that NVIDIA's own Python bindings load and every
 * call through them is checked against their signatures, without the libraries and without a GPU.
 *
 * There is one object. Each of its virtual functions returns what was scripted by `script`, or the object itself. */
#include <stddef.h>
#include <string.h>

#define SLOTS 512
#define POINTERS 8
#define DIMS 2
#define DIMS_BYTES (8 + 8 * 8) /* their number and at most eight of them */

typedef struct {
    void **functions;
    void *inner[POINTERS]; /* every class of the API holds a pointer to its implementation, after those of its bases */
    char rest[4096];
} Object;

static char memory[sizeof(Object) + 256] __attribute__((aligned(256)));
static void *table[2 + SLOTS]; /* before the functions: offset to the whole object, and its type */
static struct {
    void *functions;
    const char *name;
} type = {NULL, "4Fake"};
static Object *object;
static void *answer;
static int scripted;
static int first; /* calls that come before those whose answer is scripted */

/* A result of a Dims is written to memory that x86-64 passes as the first argument. */
static void *respond(void *place) {
    if (!scripted || first-- > 0) return object;
    if (scripted == DIMS) return memcpy(place, answer, DIMS_BYTES);
    return answer;
}

/* Odd, so that the object's address is true where its lowest byte is read as a bool. */
__attribute__((constructor)) static void prepare(void) {
    object = (Object *)(memory + 0x51);
    memset(memory, 0, sizeof memory);
    table[1] = &type;
    for (int i = 0; i < SLOTS; i++) table[2 + i] = (void *)respond;
    object->functions = table + 2;
    for (int i = 0; i < POINTERS; i++) object->inner[i] = object;
}

void script(int kind, int after, void *value) {
    scripted = kind;
    first = after;
    answer = value;
}

#define FACTORY(name) void *name(void) { return respond(NULL); }
FACTORY(createInferBuilder_INTERNAL)
FACTORY(createInferRuntime_INTERNAL)
FACTORY(createInferRefitter_INTERNAL)
FACTORY(createNvOnnxParser_INTERNAL)
FACTORY(createNvOnnxParserRefitter_INTERNAL)
FACTORY(initLibNvInferPlugins)
void *getPluginRegistry(void) { return object; }
void *getBuilderPluginRegistry(void) { return object; }
int getInferLibVersion(void) { return 0; }
int getNvOnnxParserVersion(void) { return 0; }
