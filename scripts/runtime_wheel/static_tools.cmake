# CMake includes this file at llama.cpp's project(). Each library of zig's C++ programs has a copy of libc++ of its own, and
# an exception of one copy cannot be caught in another. Only libllama and ggml, whose interfaces are C, stay shared.
function(add_library name)
    if(name MATCHES "^(llama-common|mtmd|llama-.*-impl)$")
        list(REMOVE_AT ARGV 0)
        _add_library(${name} STATIC ${ARGV})
    else()
        _add_library(${ARGV})
    endif()
endfunction()
