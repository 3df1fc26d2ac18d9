// Host stand-in: everything is in the prelude already.
#pragma once
