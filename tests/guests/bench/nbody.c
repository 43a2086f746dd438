/* Sixteen bodies that attract each other, in doubles. */
#include "loops.h"

enum { BODIES = 16 };

static struct {
    double position[3], speed[3];
} bodies[BODIES];

void prepare_nbody(void)
{
    for (int i = 0; i < BODIES; i++) {
        bodies[i].position[0] = i * 1.5 + 0.3;
        bodies[i].position[1] = i * 0.7 - 2.0;
        bodies[i].position[2] = 3.0 - i * 0.2;
        for (int axis = 0; axis < 3; axis++)
            bodies[i].speed[axis] = 0.0;
    }
}

static void attract(int one, int other)
{
    double apart[3], square = 0.01;
    for (int axis = 0; axis < 3; axis++) {
        apart[axis] = bodies[one].position[axis] - bodies[other].position[axis];
        square += apart[axis] * apart[axis];
    }
    double pull = 1e-4 / (square * __builtin_sqrt(square));
    for (int axis = 0; axis < 3; axis++) {
        bodies[one].speed[axis] -= apart[axis] * pull;
        bodies[other].speed[axis] += apart[axis] * pull;
    }
}

uint64_t loop_nbody(uint64_t count)
{
    for (uint64_t round = 0; round < count; round++) {
        for (int one = 0; one < BODIES; one++)
            for (int other = one + 1; other < BODIES; other++)
                attract(one, other);
        for (int i = 0; i < BODIES; i++)
            for (int axis = 0; axis < 3; axis++)
                bodies[i].position[axis] += bodies[i].speed[axis] * 0.01;
    }
    uint64_t bits;
    __builtin_memcpy(&bits, &bodies[3].position[0], sizeof bits);
    return bits;
}
