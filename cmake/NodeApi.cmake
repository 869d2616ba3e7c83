# Where the Node-API headers are: given by cmake-js, else asked of the npm packages. Nothing is downloaded.
if(CMAKE_JS_INC)
  set(CARAVAN_NODE_INCLUDES ${CMAKE_JS_INC})
else()
  find_program(CARAVAN_NODE node REQUIRED)
  foreach(question "require('node-api-headers').include_dir" "require('node-addon-api').include_dir")
    execute_process(COMMAND ${CARAVAN_NODE} -p ${question} WORKING_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR}
      OUTPUT_VARIABLE answer OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
    list(APPEND CARAVAN_NODE_INCLUDES ${answer})
  endforeach()
endif()
