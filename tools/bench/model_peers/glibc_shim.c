// What glibc 2.38 added and the wheel of llama.cpp asks for, on an older glibc: C23's names of functions that read
// numbers. They differ from the older ones in binary literals alone ("0b1"), which no model file has.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

long __isoc23_strtol(const char* text, char** end, int base) { return strtol(text, end, base); }

unsigned long __isoc23_strtoul(const char* text, char** end, int base) {
  return strtoul(text, end, base);
}

long long __isoc23_strtoll(const char* text, char** end, int base) {
  return strtoll(text, end, base);
}

unsigned long long __isoc23_strtoull(const char* text, char** end, int base) {
  return strtoull(text, end, base);
}

int __isoc23_sscanf(const char* text, const char* format, ...) {
  va_list values;
  va_start(values, format);
  int n_read = vsscanf(text, format, values);
  va_end(values);
  return n_read;
}
